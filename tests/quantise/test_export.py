"""A target that asks for quantised values, from end to end: what it is given, what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load_file

from backends.hf.target import HfTarget
from exporter import registry
from exporter.calibration.request import CalibrationRequest
from exporter.check.model import check_model
from exporter.contract import Diagnostic, QuantiseRequest
from exporter.errors import UsageError
from exporter.model import FusedModel
from exporter.pipeline import export
from exporter.report.export import ExportReport
from exporter.report.plan import plan_report
from exporter.request import AdapterRequest, ExportRequest
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import factors, targeted, tensors_of, write_lora
from tests.tiny import save_tiny

METHODS: tuple[Literal["round", "gptq"], ...] = ("round", "gptq")
TEXT = CalibrationRequest(Path(), tokens=2048, held_out=512, length=64)


@dataclass(frozen=True)
class Asks(HfTarget):
    """Writes what it is given as float32, which holds every quantised value."""

    asked: QuantiseRequest | None = None

    def quantisation(self) -> QuantiseRequest | None:
        return self.asked

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        SEEN.append(model)
        return super().inspect(model)


SEEN: list[FusedModel] = []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sparse model and a text."""
    folder = tmp_path_factory.mktemp("quantise")
    model = save_tiny("llama2", folder / "model", sparsity=0.6, seed=5)
    words = ("the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "that", "dog")
    text = folder / "text.txt"
    text.write_text(" ".join(np.random.default_rng(0).choice(words, 1500)))
    return {"model": model, "text": text}


def run(
    world: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    asked: QuantiseRequest | None,
    *,
    calibrated: bool,
    **more: Any,
) -> ExportReport:
    target = Asks(dtype="float32", asked=asked)

    def load(name: str, options: object = None) -> Asks:
        del name, options
        return target

    monkeypatch.setattr(registry, "load_target", load)
    text = CalibrationRequest(world["text"], TEXT.tokens, TEXT.held_out, TEXT.length)
    request = ExportRequest(
        world["model"], "asks", out, calibration=text if calibrated else None, **more
    )
    outcome = export(request)
    assert outcome.report is not None
    return outcome.report


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_rounding_without_text(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run(world, monkeypatch, out, QuantiseRequest("int8"), calibrated=False)
    part = report.quantised
    assert part is not None and part.text is None and part.errors is None
    assert len(part.modules) == 14 and part.kind == "int8" and report.costs is None
    before, after = weights(world["model"]), weights(out)
    for name, old in before.items():
        module, new = name.removesuffix(".weight"), after[name]
        if module not in part.modules:
            np.testing.assert_array_equal(new, old)
            continue
        assert not new[old == 0].any()
        moved = np.linalg.norm((new - old).astype(np.float64)) / np.linalg.norm(old)
        most = np.abs(new - old).max() / np.abs(old).max()
        assert part.modules[module].weight == pytest.approx(moved, rel=1e-5)
        assert part.modules[module].weight_max == pytest.approx(most, rel=1e-6)
        assert part.modules[module].zeroed == np.count_nonzero((new == 0) & (old != 0))
        assert 0 < moved < 0.02
    quantised = [t for t in SEEN[-1].tensors.values() if t.quantised is not None]
    assert len(quantised) == 14, "the target did not see codes"
    for tensor in quantised:
        assert tensor.quantised is not None
        codes, scales = tensor.quantised.block(0, 8)
        np.testing.assert_array_equal(codes.astype(np.float32) * scales, after[tensor.name][:8])


def test_feedback_is_better_and_says_so(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {
        method: run(
            world,
            monkeypatch,
            tmp_path / method,
            QuantiseRequest("int4", 64, method),
            calibrated=True,
        )
        for method in METHODS
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gptq", "round"], "something was left"
    rounded, solved = found["round"].quantised, found["gptq"].quantised
    assert rounded is not None and solved is not None
    assert rounded.errors is not None and solved.errors is not None
    assert solved.errors[1] == pytest.approx(rounded.errors[0], rel=1e-6)
    assert rounded.errors[0] == rounded.errors[1]
    assert solved.errors[0] < 0.8 * solved.errors[1]
    assert {m.method for m in solved.modules.values()} == {"gptq"}
    assert solved.text is not None and rounded.text is not None
    assert solved.text.perplexity_before == rounded.text.perplexity_before
    assert solved.text.perplexity_after != rounded.text.perplexity_after
    assert solved.text.observed_tokens == 2048 and solved.text.held_out_tokens == 512
    before, after = weights(world["model"]), weights(tmp_path / "gptq")
    for module in solved.modules:
        name = f"{module}.weight"
        assert not after[name][before[name] == 0].view(np.uint32).any()
    page = (tmp_path / "gptq" / ".sparse-export" / "report.html").read_text()
    assert "What quantised values cost" in page and "if only rounded" in page
    for _, line in solved.lines():
        assert escape(line) in page
    raw = json.loads((tmp_path / "gptq" / ".sparse-export" / "report.json").read_text())
    assert ExportReport.model_validate(raw).quantised == solved


def test_after_a_merge(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Merge first, then codes: the report tells the two costs apart."""
    spec = check_model(Checkpoint.open(world["model"])).spec
    small = {
        m: (a * np.float32(0.1), b * np.float32(0.1))
        for m, (a, b) in factors(spec, targeted(spec, "q", "down")).items()
    }
    names = ["q_proj", "down_proj"]
    lora = write_lora(tmp_path / "lora", tensors_of(small), target_modules=names)
    report = run(
        world,
        monkeypatch,
        tmp_path / "out",
        QuantiseRequest("int8", method="gptq"),
        calibrated=True,
        adapters=(AdapterRequest(lora),),
        policy="mask",
    )
    assert report.costs is not None and report.quantised is not None
    assert report.quantised.text is not None
    assert report.quantised.text.perplexity_before == report.costs.perplexity_merged
    assert len(report.costs.modules) == 4 and len(report.quantised.modules) == 14
    assert len(report.merge["figures"]) == 4


def test_dense_linears_only_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    world = {"model": save_tiny("llama2", tmp_path / "dense")}
    for dense, count in ((False, 0), (True, 14)):
        asked = QuantiseRequest("int8", dense=dense)
        report = run(
            {**world, "text": tmp_path}, monkeypatch, tmp_path / f"{dense}", asked, calibrated=False
        )
        assert report.quantised is not None and len(report.quantised.modules) == count


def test_a_target_that_asks_for_nothing(
    world: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run(world, monkeypatch, tmp_path / "o", None, calibrated=False).quantised is None
    with pytest.raises(UsageError) as caught:
        run(world, monkeypatch, tmp_path / "p", None, calibrated=True)
    assert caught.value.code == "usage" and not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (QuantiseRequest("int4", 128, "gptq"), "calibration-needed"),
        (QuantiseRequest("int4", 100), "target-option"),
    ],
)
def test_refusals(
    asked: QuantiseRequest,
    code: str,
    world: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError) as caught:
        run(world, monkeypatch, tmp_path / "out", asked, calibrated=False)
    assert caught.value.code == code and list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError) as caught:
        plan_report(ExportRequest(world["model"], "asks", tmp_path / "out"))
    assert caught.value.code == code
