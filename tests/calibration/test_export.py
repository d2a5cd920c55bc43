"""`--calibration` from end to end: policies, figures, what is refused, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.calibration.run import TorchCalibrator
from backends.reference.session import open_reference
from exporter.calibration.observe import perplexity, read_windows
from exporter.calibration.request import CalibrationRequest
from exporter.calibration.windows import Windows
from exporter.check.model import check_model
from exporter.cli import run
from exporter.inputs import read_adapters
from exporter.merge.fuse import fuse
from exporter.report.export import ExportReport
from exporter.request import AdapterRequest, ExportRequest
from exporter.store.checkpoint import Checkpoint

OPTIONS = ":tokens=1024,held-out=512,length=64"


def export(model: Path, lora: Path, out: Path, *more: str) -> int:
    command = [str(model), "--target", "onnxruntime", "-o", str(out), "--adapter", str(lora)]
    return run([*command, *more])


def report_of(out: Path) -> Any:
    return json.loads((out / ".sparse-export" / "report.json").read_text())


@pytest.fixture(scope="module")
def reports(
    model: Path, lora: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Report and folder by policy."""
    found: dict[str, Any] = {}
    for policy in ("mask", "refit", "reprune", "separate"):
        out = tmp_path_factory.mktemp(policy) / "out"
        assert (
            export(model, lora, out, "--on-merge", policy, "--calibration", f"{text}{OPTIONS}") == 0
        )
        assert [p.name for p in out.parent.iterdir()] == ["out"], "something was left behind"
        if policy in ("refit", "reprune"):
            assert run(["verify", str(out)]) == 0
        found[policy] = report_of(out)
        found[f"{policy}-page"] = (out / ".sparse-export" / "report.html").read_text()
    return found


def test_refit_loses_less_than_mask_and_says_so(reports: dict[str, Any]) -> None:
    mask, refit = reports["mask"]["costs"], reports["refit"]["costs"]
    assert mask["error"] == mask["error_masked"] > 0
    assert refit["error_masked"] == pytest.approx(mask["error"], rel=1e-6)
    assert refit["error"] < 0.9 * mask["error"]
    for module, cost in refit["modules"].items():
        assert cost["policy"] == "refit"
        assert cost["error"] < cost["error_masked"] == mask["modules"][module]["error"]
    assert len(refit["modules"]) == 8


def test_policies_share_what_they_start_from(reports: dict[str, Any]) -> None:
    costs = [reports[p]["costs"] for p in ("mask", "refit", "reprune", "separate")]
    assert len({c["perplexity_unmerged"] for c in costs}) == 1
    assert {(c["observed_tokens"], c["held_out_tokens"], c["window"]) for c in costs} == {
        (1024, 512, 64)
    }
    assert costs[3]["perplexity_merged"] == pytest.approx(costs[3]["perplexity_unmerged"], 1e-5)
    assert costs[3]["modules"] == {} and costs[3]["error"] == 0.0


def test_zeros(reports: dict[str, Any]) -> None:
    for policy in ("mask", "refit", "reprune"):
        report = reports[policy]
        assert report["verification"]["verdict"]["passed"]
        assert report["artefact"]["sparsity_after"] == pytest.approx(
            report["model"]["sparsity"], abs=1e-4
        )
        moved = sum(f["moved"] for f in report["merge"]["figures"].values())
        assert (moved > 0) is (policy == "reprune")


def test_the_page_shows_the_cost(reports: dict[str, Any]) -> None:
    for policy in ("mask", "refit", "reprune"):
        assert "What the merge cost" in reports[f"{policy}-page"]
        assert "held-out tokens" in reports[f"{policy}-page"]
        assert "if only masked" in reports[f"{policy}-page"]
    assert "positions moved" in reports["reprune-page"]


def test_the_report_is_of_its_schema(reports: dict[str, Any]) -> None:
    for policy in ("mask", "refit", "reprune", "separate"):
        found = ExportReport.model_validate(reports[policy])
        assert found.costs is not None


def test_equal_runs_give_equal_bytes(model: Path, lora: Path, text: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "a" / "x", tmp_path / "b" / "x"]
    for out in outs:
        options = ("--on-merge", "refit", "--calibration", f"{text}{OPTIONS}")
        assert export(model, lora, out, *options) == 0
    for name in ("model.data", ".sparse-export/report.json", ".sparse-export/manifest.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_perplexity_is_that_of_the_reference_model(model: Path, lora: Path) -> None:
    """By another path: the verified reference session, logits and all, in float64."""
    checkpoint = Checkpoint.open(model)
    checked = check_model(checkpoint)
    request = ExportRequest(model, "none", Path("none"), adapters=(AdapterRequest(lora),))
    fused = fuse(checked, read_adapters(request, checkpoint, checked.spec), "separate")
    ids = np.random.default_rng(1).integers(0, 259, (3, 30))
    session = open_reference(fused)
    losses: list[float] = []
    for row in ids:
        logits = session.prefill(row.tolist()).astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        losses += [-logs[i, row[i + 1]] for i in range(len(row) - 1)]
    session.close()
    found = perplexity(fused, Windows(ids, 3), TorchCalibrator())
    assert found == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-5)


def test_token_ids_serve_as_text(model: Path, text: Path, tmp_path: Path) -> None:
    calibrator, checked = TorchCalibrator(), check_model(Checkpoint.open(model))
    ids = calibrator.tokenise(model, text.read_text())
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    found = [
        read_windows(CalibrationRequest.parse(f"{source}{OPTIONS}"), calibrator, checked)
        for source in (text, tmp_path / "ids.json")
    ]
    np.testing.assert_array_equal(found[0].ids, found[1].ids)
    assert found[0].ids.shape == (24, 64) and found[0].held_out == found[1].held_out == 8


def test_a_text_of_its_own_for_the_perplexity(
    model: Path, lora: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zebra " * 200)
    out = tmp_path / "out"
    options = ("--on-merge", "mask", "--calibration", f"{text}{OPTIONS}", "--held-out", str(other))
    assert export(model, lora, out, *options) == 0
    inputs = json.loads((out / ".sparse-export" / "manifest.json").read_text())["inputs"]
    texts = [i["files"][0]["name"] for i in inputs if i["role"] == "calibration"]
    assert texts == ["text.txt", "other.txt"]


@pytest.mark.parametrize(
    ("more", "exit_code", "word"),
    [
        (["--on-merge", "refit"], 2, "calibration-needed"),
        (["--on-merge", "refit", "--plan"], 2, "calibration-needed"),
        (["--calibration", "TEXT"], 2, "merge-policy-needed"),
        (["--on-merge", "mask", "--calibration", "no/such/file"], 3, "input-missing"),
        (["--on-merge", "mask", "--calibration", "no/such/file", "--plan"], 3, "input-missing"),
        (["--on-merge", "mask", "--calibration", "TEXT:tokens=many"], 2, "whole number"),
        (["--on-merge", "mask", "--calibration", "TEXT:words=7"], 2, "words=7"),
        (["--on-merge", "mask", "--calibration", "TEXT:length=100000"], 2, "at most the model's"),
        (["--on-merge", "mask", "--held-out", "TEXT"], 2, "--held-out without"),
    ],
)
def test_refusals(
    model: Path,
    lora: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    exit_code: int,
    word: str,
) -> None:
    given = [m.replace("TEXT", str(text)) for m in more]
    assert export(model, lora, tmp_path / "out", *given) == exit_code
    assert word in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_calibration_without_an_adapter(model: Path, text: Path, tmp_path: Path) -> None:
    command = [str(model), "--target", "onnxruntime", "-o", str(tmp_path / "out")]
    assert run([*command, "--calibration", str(text)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next(model: Path, lora: Path, tmp_path: Path) -> None:
    left = tmp_path / f"out.partial-{'ab' * 8}"
    left.mkdir()
    (left / "000001.npy").write_bytes(b"grams")
    assert export(model, lora, tmp_path / "out", "--on-merge", "mask") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
