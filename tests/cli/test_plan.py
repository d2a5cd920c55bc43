"""`--plan` refuses what headers show, and asks nothing of a place that is not there yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli import run
from exporter.commands.export import _beside


def plan(model: Path, out: Path, *more: str) -> int:
    return run([str(model), "--target", "onnxruntime", "-o", str(out), "--plan", "--json", *more])


def test_of_an_output_whose_parents_are_not_there(
    sparse_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(sparse_model, tmp_path / "not" / "there" / "out") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["disk_free_bytes"] > 0 and found["fits_on_disk"] is True
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("given", [".", "../model", "sub/.."])
def test_the_default_output_lies_beside_the_model(given: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "model" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "model")
    assert _beside(Path(given), "x") == tmp_path / "model-x"


def test_of_an_unknown_policy(sparse_model: Path, tmp_path: Path, capsys) -> None:
    assert plan(sparse_model, tmp_path / "out", "--on-merge", "hope") == 2
    assert "hope" in capsys.readouterr().err


def test_of_masks_that_are_not_there(sparse_model: Path, tmp_path: Path, capsys) -> None:
    assert plan(sparse_model, tmp_path / "out", "--masks", str(tmp_path / "no.safetensors")) == 3
    assert "input-missing" in capsys.readouterr().err


def test_without_onnx(sparse_model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("backends.decoder_graph.need.find_spec", lambda name: None)
    assert plan(sparse_model, tmp_path / "out") == 4
    assert "sparse-export[onnx]" in capsys.readouterr().err
