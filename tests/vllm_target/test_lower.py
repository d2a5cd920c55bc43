"""What lies in a lowered folder: the source's values and masks, for every family and pattern."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from backends.packed.slow import read
from backends.vllm.target import PackedTarget, VllmNmTarget, VllmSparseTarget
from backends.vllm.two_four import Vllm24Target
from exporter.store.header import read_header
from tests.tiny import EXPERTS, KINDS
from tests.vllm_target.models import (
    PATTERNS,
    by_role,
    dense_weights,
    everything,
    fused,
    layers,
    lower,
    nm,
    save_masks,
    save_pruned,
    structure,
    unstructured,
)

BF16 = np.dtype(ml_dtypes.bfloat16)
TARGETS: dict[str, tuple[type[PackedTarget], ...]] = {
    "2:4": (Vllm24Target, VllmNmTarget, VllmSparseTarget),
    "2:8": (Vllm24Target, VllmNmTarget, VllmSparseTarget),
    "mixed": (VllmNmTarget, VllmSparseTarget),
    "unstructured": (VllmSparseTarget,),
    "dense": (VllmNmTarget, VllmSparseTarget),
}


def part_bytes(out: Path, module: str) -> dict[str, bytes]:
    """The raw bytes of a linear's parts, by offsets of the file."""
    file = out / "model.safetensors"
    raw, found = file.read_bytes(), read_header(file).entries
    parts = {n: e for n, e in found.items() if n.rpartition(".")[0] == module}
    return {n.rpartition(".")[2]: raw[e.start : e.end] for n, e in parts.items()}


def slow_weight(out: Path, module: str) -> tuple[Any, Any]:
    """Weight and marked positions by the slow reader."""
    found = read(layers(out)[module], part_bytes(out, module))
    return np.array(found.weight), np.array(found.marked)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", [*KINDS, *EXPERTS])
def test_every_family_and_pattern_is_stored_as_it_is(kind: str, pattern: str, tmp_path: Path):
    source = save_pruned(kind, tmp_path / "m", PATTERNS[pattern])
    for cls in TARGETS[pattern]:
        target = cls()
        model = fused(source, target)
        assert not [d for d in target.inspect(model) if d.level == "refusal"]
        out = lower(target, model, tmp_path / target.name)
        found = structure(target, model, out)
        assert found.failures == ()
        assert found.packed is not None and found.packed.linears == len(model.spec.linears())
        assert layers(out).keys() == {x.module for x in model.spec.linears()}
        config = json.loads((out / "config.json").read_text())
        assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("values", ["bf16", "fp16", "fp32", "int8", "int4", "fp8"])
@pytest.mark.parametrize("pattern", ["2:4", "mixed", "unstructured"])
def test_the_slow_reader_finds_the_source(values: str, pattern: str, tmp_path: Path):
    """Float values are the source's; codes times scales are those of the quantised model."""
    source = save_pruned("qwen3", tmp_path / "m", PATTERNS[pattern])
    options: dict[str, Any] = {"values": values}
    target = VllmSparseTarget(**options)
    model = fused(source, target)
    out = lower(target, model, tmp_path / "out")
    assert structure(target, model, out).failures == ()
    dense = dense_weights(source)
    for module in ("model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.v_proj"):
        weight, marked = slow_weight(out, module)
        kept = dense[module] != 0
        if values in ("bf16", "fp32"):
            want = dense[module]
        else:
            tensor = model.tensors[f"{module}.weight"]
            want = tensor.rows(0, tensor.shape[0]).astype(np.float64)
            want = want.astype(np.float16).astype(np.float64) if values == "fp16" else want
            assert np.abs(want - dense[module]).max() <= 0.08 * np.abs(dense[module]).max()
        assert np.array_equal(weight, want), module
        entry = layers(out)[module]
        exact = entry["kind"] == "ragged"
        assert np.array_equal(marked, kept) if exact else marked[kept].all()
        assert entry["values"] == values


@pytest.mark.parametrize("kind", ["smollm2", "qwen2", "mixtral"])
def test_zeros_that_a_masks_file_keeps_are_kept(kind: str, tmp_path: Path):
    """The mask is that of the file, wider than the zeros, and it travels."""
    source = save_pruned(kind, tmp_path / "m", unstructured(0.8))
    masks = save_masks(source, tmp_path / "masks.safetensors", unstructured(0.55))
    target = VllmSparseTarget()
    model = fused(source, target, masks)
    out = lower(target, model, tmp_path / "out")
    found = structure(target, model, out)
    assert found.failures == () and found.kept_zeros > 0
    module = model.spec.linears()[1].module
    _, marked = slow_weight(out, module)
    assert np.array_equal(marked, model.checked.masks.mask(model.spec.linears()[1]).rows())
    assert (
        int(marked.sum())
        == layers(out)[module]["nnz"]
        > int((dense_weights(source)[module] != 0).sum())
    )


def test_kinds_follow_the_linear(tmp_path: Path):
    rule = by_role(
        q_proj=nm(2, 4), k_proj=unstructured(0.6), o_proj=everything, rest=unstructured(0.03)
    )
    source = save_pruned("llama2", tmp_path / "m", rule)
    target = VllmSparseTarget()
    out = lower(target, fused(source, target), tmp_path / "out")
    kinds = {m.rpartition(".")[2]: e["kind"] for m, e in layers(out).items()}
    assert kinds["q_proj"] == "nm" and kinds["k_proj"] == "ragged" and kinds["o_proj"] == "dense"
    assert kinds["up_proj"] == "dense", "3 % of zeros do not pay for a bit a weight"


def test_everything_pruned_from_a_linear(tmp_path: Path):
    nothing = by_role(up_proj=lambda name, size: np.zeros(size.shape, np.bool_), rest=nm(2, 4))
    source = save_pruned("llama2", tmp_path / "m", nothing)
    for target in (Vllm24Target(), VllmNmTarget(), VllmSparseTarget(), VllmSparseTarget("int4")):
        model = fused(source, target)
        out = lower(target, model, tmp_path / f"{target.name}{target.values}")
        assert structure(target, model, out).failures == ()
        entry = layers(out)["model.layers.0.mlp.up_proj"]
        ragged = target.name == "vllm-sparse"
        assert (entry["kind"], entry["nnz"]) == ("ragged" if ragged else "nm", 0)


def test_shards_and_index(tmp_path: Path):
    source = save_pruned("llama2", tmp_path / "m", unstructured(0.5), vocab_size=4000)
    target = VllmSparseTarget(shard_mb=1)
    model = fused(source, target)
    out = lower(target, model, tmp_path / "out")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held: dict[str, str] = {}
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as opened:
            held |= dict.fromkeys(opened.keys(), file.name)
    assert held == index["weight_map"] and len(set(held.values())) == 2
    for module in layers(out):
        assert len({f for n, f in held.items() if n.startswith(f"{module}.")}) == 1
    assert structure(target, model, out).failures == ()


@pytest.mark.parametrize("values", [None, "int4"])
def test_equal_models_give_equal_bytes(values: Any, tmp_path: Path):
    source = save_pruned("smollm2", tmp_path / "m", unstructured(0.66), seed=4)
    target = VllmSparseTarget(values=values)
    one, two = (lower(target, fused(source, target), tmp_path / name) for name in "ab")
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_config_has_no_path_and_keeps_the_type_of_activations(tmp_path: Path):
    source = save_pruned("llama2", tmp_path / "m", nm(2, 4), dtype="float16")
    config = json.loads((source / "config.json").read_text())
    config["_name_or_path"] = "/home/someone/model"
    (source / "config.json").write_text(json.dumps(config))
    target = Vllm24Target(values="int8")
    written = json.loads(
        (lower(target, fused(source, target), tmp_path / "o") / "config.json").read_text()
    )
    assert "/home" not in json.dumps(written) and written["dtype"] == "float16"
    quantisation = written["quantization_config"]
    assert {k: quantisation[k] for k in ("quant_method", "format", "version", "tile")} == {
        "quant_method": "sparse-export",
        "format": "packed",
        "version": 1,
        "tile": [16, 64],
    }
