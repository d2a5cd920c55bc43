"""Broken and hostile packed folders in plain transformers: refused by name, never filled in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from backends.hf.session import open_session
from backends.packed.transformers import PackedConfig
from exporter.errors import EngineUnfit, InputRefused, UsageError
from tests.hf.test_packed import pair
from tests.tiny import save_tiny

Tensors = dict[str, torch.Tensor]
FIRST = "model.layers.0.mlp.down_proj"  # ragged bf16, by the order of `HOWS`


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packed, _ = pair("llama2", tmp_path_factory.mktemp("refusals"))
    layers = json.loads((packed / "config.json").read_text())["quantization_config"]["layers"]
    assert layers[FIRST]["kind"] == "ragged" and layers[FIRST]["values"] == "bf16"
    return packed


def broken(whole: Path, tmp_path: Path, change: Callable[[Tensors], Any]) -> Path:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def reconfigured(whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    folder = tmp_path / "reconfigured"
    shutil.copytree(whole, folder)
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        auto.from_pretrained(folder, dtype=torch.float32, **options)
    return caught.value


@pytest.mark.parametrize("part", ["mask", "values", "offsets", "starts"])
def test_a_part_is_missing(part: str, whole: Path, tmp_path: Path) -> None:
    error = refusal(broken(whole, tmp_path, lambda t: t.pop(f"{FIRST}.{part}")))
    assert (error.code, error.tensor) == ("tensor-missing", f"{FIRST}.{part}")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_plain_tensor_is_missing(name: str, whole: Path, tmp_path: Path) -> None:
    error = refusal(broken(whole, tmp_path, lambda t: t.pop(name)))
    assert (error.code, error.tensor) == ("tensor-missing", name)


def test_a_whole_linear_is_missing(whole: Path, tmp_path: Path) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(f"{FIRST}.")]:
            del tensors[name]

    folder = broken(whole, tmp_path, drop)
    assert refusal(folder).code == "tensor-missing"
    folder = reconfigured(folder, tmp_path, lambda q: q["layers"].pop(FIRST))
    error = refusal(folder)
    assert (error.code, error.tensor) == ("tensor-missing", f"{FIRST}.weight")


@pytest.mark.parametrize(
    "name",
    [
        f"{FIRST}.scales",  # a part that this kind has not
        f"{FIRST}.weight",  # the linear twice
        "model.layers.0.input_layernorm.mask",  # of no packed linear
        "model.layers.7.mlp.up_proj.values",  # of no linear at all
        "model.extra.weight",
    ],
)
def test_a_tensor_too_many(name: str, whole: Path, tmp_path: Path) -> None:
    extra = {name: torch.zeros(64)}
    error = refusal(broken(whole, tmp_path, lambda t: t.update(extra)))
    assert (error.code, error.tensor) == ("tensor-unexpected", name)


def test_a_linear_that_the_model_lacks(whole: Path, tmp_path: Path) -> None:
    def move(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(f"{FIRST}.")]:
            tensors[name.replace("down_proj", "sideways")] = tensors.pop(name)

    def rename(config: dict[str, Any]) -> None:
        config["layers"][FIRST.replace("down_proj", "sideways")] = config["layers"].pop(FIRST)

    error = refusal(reconfigured(broken(whole, tmp_path, move), tmp_path, rename))
    assert error.code == "tensor-unexpected" and "sideways" in str(error.tensor)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_plain_tensor_of_another_shape(name: str, whole: Path, tmp_path: Path) -> None:
    error = refusal(broken(whole, tmp_path, lambda t: t.update({name: t[name][:-1]})))
    assert (error.code, error.tensor) == ("tensor-shape", name)


def test_a_packed_linear_of_another_shape(whole: Path, tmp_path: Path) -> None:
    """All its parts agree with config.json, and none of that with the model."""
    other = "model.layers.0.self_attn.k_proj"
    tensors = load_file(whole / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())["quantization_config"]["layers"]

    def swap(t: Tensors) -> None:
        for name in [n for n in t if n.startswith(f"{FIRST}.")]:
            del t[name]
        mine = [n for n in tensors if n.startswith(f"{other}.")]
        t.update({n.replace(other, FIRST): tensors[n] for n in mine})

    folder = broken(whole, tmp_path, swap)
    folder = reconfigured(folder, tmp_path, lambda q: q["layers"].update({FIRST: config[other]}))
    error = refusal(folder)
    assert (error.code, error.tensor) == ("tensor-shape", f"{FIRST}.weight")


def flip(name: str, at: int, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[at] = value

    return change


SCALED = "model.layers.0.self_attn.k_proj.scales"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.update({f"{FIRST}.values": t[f"{FIRST}.values"][:-1]}), "values"),
        (lambda t: t.update({f"{FIRST}.mask": t[f"{FIRST}.mask"][:, :-1]}), "mask"),
        (flip(f"{FIRST}.offsets", 1, 3), "offsets"),
        (flip(f"{FIRST}.starts", 1, 10**9), "starts"),
        (flip(f"{FIRST}.mask", 5, 255), "mask"),
        (flip(f"{FIRST}.values", 7, float("nan")), "values"),
        (flip(SCALED, 0, float("nan")), "scales"),
        (flip(SCALED, 0, 0.0), "scales"),
    ],
)
def test_parts_that_lie(change: Any, part: str, whole: Path, tmp_path: Path) -> None:
    if part == "scales":
        assert SCALED in load_file(whole / "model.safetensors")
    error = refusal(broken(whole, tmp_path, change))
    assert error.code == "packed-invalid" and str(error.tensor).endswith(f".{part}")
    assert error.file == "model.safetensors"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda q: q.update(version=2), "packed-version"),
        (lambda q: q.update(more=1), "packed-invalid"),
        (lambda q: q["layers"][FIRST].update(kind="magic"), "packed-invalid"),
        (lambda q: q["layers"][FIRST].update(nnz=5), "packed-invalid"),
    ],
)
def test_configs_that_lie(change: Any, code: str, whole: Path, tmp_path: Path) -> None:
    assert refusal(reconfigured(whole, tmp_path, change)).code == code


def test_experts_that_lie(tmp_path: Path) -> None:
    """Parts that are fused after unpacking are checked before."""
    packed, _ = pair("mixtral", tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.2.w2.values"
    folder = broken(packed, tmp_path, flip(name, 3, float("inf")))
    stored = load_file(folder / "model.safetensors")[name]
    assert stored.is_floating_point()
    error = refusal(folder)
    assert (error.code, error.tensor) == ("packed-invalid", name)


def test_a_cut_file(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    assert refusal(folder).code == "file-truncated"


def test_a_head_that_would_be_random(whole: Path) -> None:
    error = refusal(whole, AutoModelForSequenceClassification)
    assert error.code in ("tensor-missing", "tensor-unexpected")
    assert refusal(whole, AutoModel).tensor == "lm_head.weight"


def test_the_session_names_the_fault(whole: Path, tmp_path: Path) -> None:
    folder = broken(whole, tmp_path, flip(f"{FIRST}.offsets", 1, 3))
    with pytest.raises(EngineUnfit, match=f"packed-invalid.*{FIRST}.offsets"):
        open_session(folder)


def test_what_the_quantiser_cannot_do(whole: Path, tmp_path: Path) -> None:
    dense = save_tiny("llama2", tmp_path / "m")
    raw = json.loads((whole / "config.json").read_text())["quantization_config"]
    with pytest.raises(UsageError, match="not packed"):
        AutoModelForCausalLM.from_pretrained(dense, quantization_config=PackedConfig(**raw))
    with pytest.raises(UsageError, match="disk"):
        AutoModelForCausalLM.from_pretrained(whole, device_map={"": "disk"})
