"""`--expect PATTERN`: a model that is not sparse as claimed is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.cli import run
from tests.check.folder import LINEARS, tensors, write_model
from tests.sparsity.slow import prune_nm


@pytest.fixture
def six_of_eight(tmp_path: Path) -> Path:
    """A model that Wanda's prune_n = 2, prune_m = 8 would give."""
    rng = np.random.default_rng(0)
    arrays = tensors()
    for module, shape in LINEARS.items():
        arrays[f"{module}.weight"][~prune_nm(rng, *shape, 6, 8)] = 0
    write_model(tmp_path / "model", arrays)
    return tmp_path / "model"


@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_the_other_reading_is_shown(
    verb: str, six_of_eight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    more = ["--target", "onnxruntime", "-o", str(out)] if verb == "export" else []
    assert run([verb, str(six_of_eight), "--expect", "2:8", *more]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "pattern-mismatch" in said
    assert "2:8 kept = 75 % zeros; 2:8 zeros = 6:8 kept = 25 % zeros; found 6:8 kept" in said
    assert not out.exists()


@pytest.mark.parametrize("pattern", ["6:8", "2:8 zeros", "25%"])
def test_a_claim_that_holds(pattern: str, six_of_eight: Path) -> None:
    assert run(["inspect", str(six_of_eight), "--expect", pattern]) == 0


def test_an_architecture_without_a_data_file(six_of_eight: Path) -> None:
    config = six_of_eight / "config.json"
    text = config.read_text().replace('"llama"', '"other"').replace("LlamaForCausalLM", "OtherLM")
    config.write_text(text)
    assert run(["inspect", str(six_of_eight), "--expect", "6:8"]) == 0
    assert run(["inspect", str(six_of_eight), "--expect", "2:8"]) == 3


def test_what_is_no_pattern_or_cannot_be_looked_at(six_of_eight: Path, tmp_path: Path) -> None:
    assert run(["inspect", str(six_of_eight), "--expect", "two of eight"]) == 2
    plan = ["--target", "onnxruntime", "-o", str(tmp_path / "o"), "--plan", "--expect", "6:8"]
    assert run([str(six_of_eight), *plan]) == 2
