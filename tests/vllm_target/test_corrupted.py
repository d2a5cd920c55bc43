"""Planted faults in a packed folder: verification finds each, and names the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear
from backends.packed.unpack import kept, unpack
from backends.vllm.target import PackedTarget, VllmNmTarget, VllmSparseTarget
from exporter.errors import VerificationFailed
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.writer import write_safetensors
from tests.vllm_target.models import (
    by_role,
    everything,
    fused,
    lower,
    nm,
    save_masks,
    save_pruned,
    structure,
)
from tests.vllm_target.models import unstructured as free

RAGGED, RECTANGULAR = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"
DENSE = "model.layers.1.self_attn.o_proj"
Arrays = dict[str, Any]
Change = Callable[[Arrays, dict[str, Any]], None]  # tensors, entries of config.json


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rule = by_role(gate_proj=nm(3, 8), o_proj=everything, rest=free(0.7))
    return save_pruned("llama2", tmp_path_factory.mktemp("corrupted") / "m", rule)


def faults(source: Path, out: Path, change: Change, values: Any = None) -> list[str]:
    """What verification says once `change` was made; typed errors count as one failure."""
    target = VllmSparseTarget(values)
    model = fused(source, target)
    lower(target, model, out)
    assert structure(target, model, out).failures == ()
    rewrite(out, change)
    return found(target, model, out)


def found(target: PackedTarget, model: FusedModel, out: Path) -> list[str]:
    try:
        return list(structure(target, model, out).failures)
    except VerificationFailed as error:
        assert error.code == "verify-structure"
        return [f"{error.tensor}: {error.found}"]


def rewrite(out: Path, change: Change) -> None:
    opened = Checkpoint.open(out)
    tensors: Arrays = {name: opened.view(name).copy() for name in opened.entries}
    opened.close()
    config = json.loads((out / "config.json").read_text())
    change(tensors, config["quantization_config"]["layers"])
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (out / "model.safetensors").unlink()
    write_safetensors(out / "model.safetensors", tensors, {"format": "pt"})


def repacked(module: str, edit: Callable[[Any, Any], None]) -> Change:
    """A linear packed anew, so that every rule of the format holds, with other content."""

    def change(tensors: Arrays, entries: dict[str, Any]) -> None:
        spec = PackedLinear.from_json(module, entries[module])
        names = {n: n.rpartition(".")[2] for n in tensors if n.startswith(f"{module}.")}
        parts = {part: tensors[n] for n, part in names.items()}
        values, marked = unpack(spec, parts), kept(spec, parts)
        edit(values, marked)
        made = pack(spec, values, marked, parts.get("scales"))
        tensors.update({n: made[part] for n, part in names.items()})

    return change


def move_bit(values: Any, marked: Any) -> None:
    """A kept position and its pruned neighbour change places, with the value."""
    row, column = np.argwhere(marked[:, :-1] & ~marked[:, 1:])[7]
    marked[row, column : column + 2] = [False, True]
    values[row, column : column + 2] = values[row, column : column + 2][::-1].copy()


def move_kept_zero(values: Any, marked: Any) -> None:
    """A kept zero and its pruned neighbour change places: no value tells it."""
    zeros = marked[:, :-1] & (values[:, :-1] == 0) & ~marked[:, 1:]
    row, column = np.argwhere(zeros)[7]
    marked[row, column : column + 2] = [False, True]


def swap_values(values: Any, marked: Any) -> None:
    one, two = np.argwhere(marked)[[3, 400]]
    values[tuple(one)], values[tuple(two)] = values[tuple(two)], values[tuple(one)]


def test_moved_position_is_found_by_mask_and_zeros(source: Path, tmp_path: Path):
    told = faults(source, tmp_path / "out", repacked(RAGGED, move_bit))
    assert any(f"{RAGGED}.weight: the stored mask differs from the model's at 2" in t for t in told)
    assert any(f"{RAGGED}.weight: 1 values outside the mask are not zero" in t for t in told)


def test_mask_is_compared_where_no_value_tells(tmp_path: Path):
    source = save_pruned("llama2", tmp_path / "m", free(0.8))
    rng = np.random.default_rng(0)
    masks = save_masks(
        source,
        tmp_path / "masks.safetensors",
        lambda name, size: (size != 0) | (rng.random(size.shape) < 0.3),
    )
    target = VllmSparseTarget()
    model = fused(source, target, masks)
    out = lower(target, model, tmp_path / "out")
    rewrite(out, repacked(RAGGED, move_kept_zero))
    told = [t for t in found(target, model, out) if t.startswith("model.layers")]
    assert len(told) == 1, told
    assert f"{RAGGED}.weight: the stored mask differs from the model's at 2 positions" in told[0]


@pytest.mark.parametrize("module", [RAGGED, RECTANGULAR, DENSE])
def test_swapped_values(module: str, source: Path, tmp_path: Path):
    told = faults(source, tmp_path / "out", repacked(module, swap_values))
    assert any(f"{module}.weight is not the fused tensor: 2 values differ" in t for t in told)


def double_scale(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    tensors[f"{RAGGED}.scales"][5] *= 2


@pytest.mark.parametrize("values", ["int8", "int4", "fp8"])
def test_wrong_scale(values: str, source: Path, tmp_path: Path):
    told = faults(source, tmp_path / "out", double_scale, values)
    assert any(f"{RAGGED}.weight is not the fused tensor" in t for t in told)


def flip_bit(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    tensors[f"{RAGGED}.mask"][1, 0, 60] ^= 4


def flip_and_count(tensors: Arrays, entries: dict[str, Any]) -> None:
    flip_bit(tensors, entries)
    entries[RAGGED]["nnz"] = int(np.unpackbits(tensors[f"{RAGGED}.mask"]).sum())


def use_filler(tensors: Arrays, entries: dict[str, Any]) -> None:
    """A kept weight's value stands at a filler of N:M instead."""
    del entries
    flat = tensors[f"{RAGGED}.values"].reshape(-1)
    filler, used = np.flatnonzero(flat == 0)[0], np.flatnonzero(flat)[0]
    flat[filler], flat[used] = flat[used], 0


def test_value_at_a_filler(tmp_path: Path):
    def rule(name: str, size: Any) -> Any:
        return nm(2, 4)(name, size) & free(0.6)(name, size)

    source = save_pruned("llama2", tmp_path / "m", rule)
    target = VllmNmTarget()
    model = fused(source, target)
    out = lower(target, model, tmp_path / "out")
    rewrite(out, use_filler)
    told = found(target, model, out)
    assert any(f"{RAGGED}.weight: 1 values outside the mask are not zero" in t for t in told)


def move_bit_within_group(values: Any, marked: Any) -> None:
    """An N:M mask that is sound, and is not the model's."""
    group = marked[0, :8]
    one, two = np.flatnonzero(group)[0], np.flatnonzero(~group)[0]
    values[0, two], values[0, one] = values[0, one], 0
    marked[0, [one, two]] = [False, True]


def test_mask_of_n_m_lacks_a_position(source: Path, tmp_path: Path):
    told = faults(source, tmp_path / "out", repacked(RECTANGULAR, move_bit_within_group))
    lacks = f"{RECTANGULAR}.weight: the stored mask lacks positions of the model's at 1"
    assert any(lacks in t for t in told)


def drop_scales(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    del tensors[f"{RAGGED}.scales"]


def drop_mask(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    del tensors[f"{RAGGED}.mask"]


def wrong_nnz(tensors: Arrays, entries: dict[str, Any]) -> None:
    del tensors
    entries[RAGGED]["nnz"] += 1


def not_finite(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    tensors[f"{RAGGED}.values"][9] = np.nan


def stray(tensors: Arrays, entries: dict[str, Any]) -> None:
    del entries
    tensors[f"{RAGGED}.weight"] = np.ones((160, 64), np.float32)


def forgotten(tensors: Arrays, entries: dict[str, Any]) -> None:
    """The tensors of a linear that config.json does not list."""
    del tensors
    del entries[RAGGED]


@pytest.mark.parametrize(
    ("change", "values", "told"),
    [
        (flip_bit, None, f"{RAGGED}.mask"),
        (flip_and_count, None, f"{RAGGED}."),
        (drop_mask, None, f"{RAGGED}.mask: the tensor is missing"),
        (drop_scales, "int8", f"{RAGGED}.scales: the tensor is missing"),
        (wrong_nnz, None, f"{RAGGED}.values: bfloat16"),
        (not_finite, None, f"{RAGGED}.values: NaN or infinity"),
        (stray, None, f"{RAGGED}.weight is stored twice"),
        (forgotten, None, f"{RAGGED}.weight is missing"),
    ],
)
def test_broken_parts(change: Change, values: Any, told: str, source: Path, tmp_path: Path):
    assert any(told in t for t in faults(source, tmp_path / "out", change, values))


def test_codes_where_the_model_has_none_and_the_reverse(source: Path, tmp_path: Path):
    coded, plain = VllmSparseTarget("int8"), VllmSparseTarget()
    quantised, model = fused(source, coded), fused(source, plain)
    one = lower(coded, quantised, tmp_path / "int8")
    two = lower(plain, model, tmp_path / "plain")
    assert any(f"{RAGGED}.weight takes" in t for t in found(plain, model, one))
    assert any(f"{RAGGED}.weight takes" in t for t in found(coded, quantised, two))


def test_dense_in_place_of_packed(source: Path, tmp_path: Path):
    """The right values stored plainly: not what was planned."""

    def change(tensors: Arrays, entries: dict[str, Any]) -> None:
        spec = PackedLinear.from_json(RAGGED, entries.pop(RAGGED))
        names = [n for n in tensors if n.startswith(f"{RAGGED}.")]
        parts = {n.rpartition(".")[2]: tensors.pop(n) for n in names}
        tensors[f"{RAGGED}.weight"] = unpack(spec, parts)

    told = faults(source, tmp_path / "out", change)
    assert any(f"{RAGGED}.weight is not packed, as it should be" in t for t in told)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("quantization_config"),
        lambda c: c["quantization_config"].update(version=2),
        lambda c: c["quantization_config"].update(extra=1),
        lambda c: c.update(model_type="unknown"),
    ],
)
def test_broken_config(change: Callable[[Any], Any], source: Path, tmp_path: Path):
    target = VllmSparseTarget()
    model = fused(source, target)
    out = lower(target, model, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationFailed) as caught:
        list(target.read_back(out))
    assert caught.value.code == "verify-structure"


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_broken_file(content: bytes | None, source: Path, tmp_path: Path):
    target = VllmSparseTarget()
    out = lower(target, fused(source, target), tmp_path / "out")
    (out / "model.safetensors").unlink()
    if content is not None:
        (out / "model.safetensors").write_bytes(content)
    with pytest.raises(VerificationFailed) as caught:
        list(target.read_back(out))
    assert caught.value.code == "verify-structure"
