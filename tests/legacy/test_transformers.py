"""Bitmask folders in plain transformers, and the export that is verified by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from backends.hf.session import open_session
from backends.vllm.two_four import Vllm24Target
from exporter.cli import run
from exporter.errors import EngineUnfit
from exporter.verify.structure import check_structure
from tests.legacy.conftest import fused, two_four
from tests.legacy.write_ct import write_ct

TOKENS = [1, 9, 88, 200, 7]


def logits(folder: Path) -> np.ndarray:
    session = open_session(folder)
    try:
        return session.prefill(TOKENS)
    finally:
        session.close()


def test_theirs_and_ours_give_the_dense_logits(theirs: Path, ours: Path, dense: Path) -> None:
    want = logits(dense)
    assert np.array_equal(logits(theirs), want) and np.array_equal(logits(ours), want)


def test_unstructured_ones_too(dense: Path, tmp_path: Path) -> None:
    folder = write_ct(dense, tmp_path / "theirs", "sparse-bitmask")
    assert np.array_equal(logits(folder), logits(dense))


@pytest.mark.parametrize("part", ["compressed", "bitmask", "shape"])
def test_a_part_is_missing(part: str, ours: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ours, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"model.layers.1.mlp.up_proj.{part}"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineUnfit, match="tensor-(missing|unexpected).*layers.1.mlp.up_proj"):
        open_session(folder)


def test_a_bitmask_that_lies(ours: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(ours, tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.bitmask"][3, 1] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineUnfit, match=r"bitmask-invalid.*up_proj.bitmask: row 3, group 2"):
        open_session(folder)


def test_exported_and_verified(
    dense: Path,
    ours: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without vLLM's environment, transformers verifies the same files."""
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    target = "vllm-24,layout=compressed-tensors"
    assert run([str(dense), "--target", target, "-o", str(out)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "passed" in told and "hf ran the same files" in told
    got = (out / "model.safetensors").read_bytes()
    assert got == (ours / "model.safetensors").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"]["sparsity_config"]["format"] == "sparse-24-bitmask"
    assert run(["verify", str(out)]) == 0


def test_a_value_that_rounds_to_negative_zero(tmp_path: Path) -> None:
    """It is kept, is -0.0 in float16, and stands there as +0.0; reference and files agree."""
    model = two_four(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    at = tuple(np.argwhere(weight != 0)[0])
    weight[at] = -1e-20
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    target = Vllm24Target(layout="compressed-tensors", values="fp16")
    fused_model = fused(model)
    (tmp_path / "out").mkdir()
    target.lower(fused_model, tmp_path / "out", lambda *_: None)
    found = check_structure(target, fused_model, tmp_path / "out")
    assert found.failures == () and found.packed is not None and found.packed.linears == 14
    name = "model.layers.0.mlp.up_proj.weight"
    value = target.as_written(fused_model).tensors[name].rows(0, weight.shape[0])[at]
    assert value == 0 and not np.signbit(value)


@pytest.mark.parametrize(
    ("kind", "dtype", "told"),
    [("llama2", "float32", "bfloat16 and float16"), ("mixtral", "bfloat16", "experts")],
)
def test_refused_by_name(
    kind: str, dtype: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = two_four(tmp_path / "m", kind, dtype)
    target = "vllm-24,layout=compressed-tensors"
    assert run([str(model), "--target", target, "-o", str(tmp_path / "out")]) == 3
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_sizes_that_vllm_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two_four(tmp_path / "m", "llama2", intermediate_size=156)
    target = "vllm-24,layout=compressed-tensors"
    assert run([str(model), "--target", target, "-o", str(tmp_path / "out")]) == 3
    assert "156 x 64" in " ".join(capsys.readouterr().err.split())


def test_a_third_weight_in_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two_four(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    weight[5, 8:12] = 1
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    target = "vllm-24,layout=compressed-tensors"
    assert run([str(model), "--target", target, "-o", str(tmp_path / "out")]) == 3
    told = " ".join(capsys.readouterr().err.split())
    assert "1 of " in told and "up_proj, row 5, group 2" in told
