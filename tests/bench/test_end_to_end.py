"""`sparse-bench ab` on two real artefacts in ONNX Runtime, and what happens when one is spoilt."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from bench import cli
from bench.results import ab_schema
from exporter.pipeline import export
from exporter.request import ExportRequest
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dense model and its pruned twin, exported and verified."""
    root = tmp_path_factory.mktemp("ab")
    outs: list[Path] = []
    for name, sparsity in (("dense", 0.0), ("sparse", 0.7)):
        model = save_tiny("llama2", root / f"{name}-model", sparsity=sparsity)
        outs.append(root / name)
        export(ExportRequest(model=model, target="onnxruntime", output=outs[-1]))
    return outs[0], outs[1]


def command(artefacts: tuple[Path, Path], *more: str) -> list[str]:
    short = ["--prompt-tokens", "20", "--new-tokens", "6", "--rounds", "6", "--threads", "1"]
    return ["ab", *map(str, artefacts), *short, *more]


def test_real_engines_are_timed_in_processes_of_their_own(
    artefacts: tuple[Path, Path], tmp_path: Path
) -> None:
    out, page = tmp_path / "ab.json", tmp_path / "ab.html"
    assert cli.run(command(artefacts, "--json", str(out), "--html", str(page))) == 0
    raw = json.loads(out.read_text())
    jsonschema.Draft202012Validator(ab_schema()).validate(raw)
    for side in ("dense", "sparse"):
        found = raw[side]
        assert found["engine"] == "onnxruntime" and found["threads"] == 1
        assert found["selftest"]["greedy_tokens"] > 0
        assert found["selftest"]["max_rel_error"] <= found["selftest"]["tolerance"]
        # An engine of 0.2 MB of weights: this process, with torch in it, is several times larger.
        assert 0 < found["peak_rss_bytes"] < 250e6
        assert found["decode_tokens_per_second"]["median"] > 0
    assert raw["dense"]["manifest_sha256"] != raw["sparse"]["manifest_sha256"]
    assert "<svg" in page.read_text() and str(tmp_path) not in page.read_text()


def test_an_artefact_with_the_weights_of_another_is_found_out(
    artefacts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fast but wrong: the sparse weights behind the dense self-test."""
    import shutil

    dense, sparse = artefacts
    spoilt = tmp_path / "spoilt"
    shutil.copytree(dense, spoilt)
    for file in sparse.iterdir():
        if file.is_file():
            shutil.copy(file, spoilt / file.name)
    assert cli.run(command((spoilt, sparse))) == 5
    assert "outputs-differ" in capsys.readouterr().err
