"""Models with experts from end to end: verified export to `hf`, inspect, what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from exporter.cli import run
from tests.hf.test_export import SHORT, loaded
from tests.tiny import EXPERTS, save_tiny

PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module", params=EXPERTS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    return save_tiny(request.param, folder, sparsity=0.5, **SHORT)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / base.name
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=PARAMETERS,
        init_lora_weights=False,
    )
    peft: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(str(folder))
    return folder


def slow_deltas(adapter: Path, layer: int) -> dict[str, Any]:
    """float64 `[experts, out, in]` by parameter: `ParamWrapper.get_delta_weight` of peft 0.21."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    found: dict[str, Any] = {}
    for name, wrapped in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        start = f"base_model.model.model.layers.{layer}.mlp.experts{wrapped}.lora"
        a, b = (tensors[f"{start}_{side}.weight"].astype(np.float64) for side in "AB")
        a = a.reshape(3, 4, -1)
        b = b.reshape(len(b), 4, 3)
        found[name] = 6 / 4 * np.einsum("ork,kri->koi", b, a)
    return found


def test_export_is_verified_and_keeps_the_zeros(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    told = [str(base), "--target", "hf", "-o", str(out), "--adapter", str(adapter)]
    assert run([*told, "--on-merge", "mask"]) == 0
    assert "passed: " in capsys.readouterr().out
    before, after = loaded(base), loaded(out)
    assert before.keys() == after.keys()
    deltas = slow_deltas(adapter, 0)
    for name, weight in before.items():
        kept = weight != 0
        assert not after[name][~kept].view(np.uint32).any(), name
        owner, _, leaf = name.rpartition(".")
        if owner == "model.layers.0.mlp.experts":
            want = np.where(kept, weight + deltas[leaf], 0)
            assert np.abs(after[name] - want).max() <= 1e-6 * np.abs(want).max()
            assert np.abs(after[name] - weight).max() > 1e-2
        elif "mlp.gate." in name:
            assert np.array_equal(after[name], weight)


def test_without_a_policy_zeros_are_not_filled(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = [str(base), "--target", "hf", "-o", str(tmp_path / "out"), "--adapter", str(adapter)]
    assert run(told) == 2
    assert "merge-policy-needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_shows_each_linear_of_each_expert(base: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["inspect", str(base), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == base.name
    modules = {x["module"] for x in report["linears"]}
    experts = {m for m in modules if ".experts." in m}
    layers = {"mixtral": 2, "qwen3_moe": 1}[base.name]
    assert len(experts) == layers * 3 * 3
    assert not any(m.endswith(".gate") for m in modules)


@pytest.mark.parametrize("target", ["onnxruntime", "deepsparse"])
def test_graph_targets_refuse_it_by_name(
    target: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run([str(base), "--target", target, "-o", str(tmp_path / "out")]) == 3
    told = capsys.readouterr().err
    assert "target-refused" in told and base.name in told and "--target hf" in told
    assert not (tmp_path / "out").exists()
