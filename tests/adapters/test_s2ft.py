"""S2FT adapters: rows and columns, as LoRA, overlap, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from exporter.adapters.s2ft import write_s2ft
from exporter.adapters.s2ft_delta import ColumnsDelta, RowsDelta
from exporter.adapters.s2ft_overlap import Overlap, overlap
from exporter.errors import UsageError
from exporter.merge.fuse import fuse
from tests.adapters.forge import DIGEST, mend_json, targeted
from tests.adapters.own import bits, close, in_blocks, load, reader, refused, rows_of
from tests.merge.world import make_model, shape_of, tensors_of

DENSE = make_model(0.0)
SPARSE = make_model(0.7)
UP, DOWN, OUT = (targeted(DENSE.spec, r)[0] for r in ("up", "down", "o"))
COLS, ROWS = [2, 3, 11, 23], [0, 7, 22]
Deltas = dict[str, tuple[Any, Any, Any]]


def deltas(seed: int = 0) -> Deltas:
    rng = np.random.default_rng(seed)
    return {
        DOWN: ("cols", COLS, rng.standard_normal((16, 4)).astype("f4")),
        UP: ("rows", ROWS, rng.standard_normal((3, 16)).astype("f4")),
        OUT: ("cols", [4, 5, 6, 7], rng.standard_normal((16, 4)).astype("f4")),
    }


def under(model: Any, chosen: Deltas) -> Deltas:
    """The same, trained under the model's mask."""
    found: Deltas = {}
    for module, (kind, index, values) in chosen.items():
        kept = tensors_of(model)[f"{module}.weight"] != 0
        found[module] = (kind, index, values * (kept[:, index] if kind == "cols" else kept[index]))
    return found


def slow(shape: tuple[int, int], kind: str, index: Any, values: Any, scale: float) -> Any:
    """float64, one row or column at a time."""
    delta = np.zeros(shape)
    for place, channel in enumerate(index):
        if kind == "cols":
            delta[:, channel] += scale * values[:, place].astype(np.float64)
        else:
            delta[channel] += scale * values[place].astype(np.float64)
    return delta


def test_against_the_equation(tmp_path: Path):
    facts = {"base": "tiny-base", "base_sha256": DIGEST, "scaling": 0.75, "seed": 0}
    facts |= {"ratios": {"d": 0.02, "u": 0.01}, "strategy": "R"}
    write_s2ft(tmp_path / "s", deltas(), facts=facts)
    adapter = load(tmp_path / "s", DENSE)
    assert (adapter.family, adapter.masked, adapter.tensors_used) == ("s2ft", False, 6)
    assert adapter.facts["made_with"] == {k: facts[k] for k in ("ratios", "strategy", "seed")}
    fused = fuse(DENSE, [(adapter, 1.0)])
    for module, (kind, index, values) in deltas().items():
        weight = tensors_of(DENSE)[f"{module}.weight"]
        want = slow(weight.shape, kind, index, values, 0.75)
        found = rows_of(adapter.deltas[module], weight)
        close(found, want)
        assert (bits(in_blocks(adapter.deltas[module], weight, 5)) == bits(found)).all()
        merged = fused.tensors[f"{module}.weight"].rows(0, len(weight))
        close(merged, weight + want)
        assert (merged == weight)[want == 0].all()  # nothing else moved


def test_trained_under_the_mask_it_merges_exactly(tmp_path: Path):
    write_s2ft(tmp_path / "s", under(SPARSE, deltas()))
    fused = fuse(SPARSE, [(load(tmp_path / "s", SPARSE), 1.0)])
    for module in deltas():
        weight = tensors_of(SPARSE)[f"{module}.weight"]
        merged = fused.tensors[f"{module}.weight"].rows(0, len(weight))
        assert not bits(merged)[weight == 0].any()
        assert fused.record["modules"][module] == {"policy": "exact", "reason": "measured"}


def test_trained_without_the_mask_the_user_chooses(tmp_path: Path):
    write_s2ft(tmp_path / "s", deltas())
    adapter = load(tmp_path / "s", SPARSE)
    with pytest.raises(UsageError) as caught:
        fuse(SPARSE, [(adapter, 1.0)])
    assert caught.value.code == "merge-policy-needed"
    fused = fuse(SPARSE, [(adapter, 1.0)], "mask")
    weight = tensors_of(SPARSE)[f"{DOWN}.weight"]
    merged = fused.tensors[f"{DOWN}.weight"].rows(0, 16)
    want = weight + slow((16, 24), *deltas()[DOWN], 1.0)
    close(merged, np.where(weight != 0, want, 0.0))


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["cols", "rows"]),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    data=st.data(),
    scale=st.sampled_from([1.0, 0.3, -2.0]),
)
def test_as_lora_it_is_the_same(kind: str, shape: tuple[int, int], data: Any, scale: float):
    """`B A` with a one-hot factor: not a bit differs, whatever a BLAS does with the sums."""
    size = shape[1 if kind == "cols" else 0]
    index = np.asarray(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))), np.int64)
    rng = np.random.default_rng(len(index))
    many = (shape[0], len(index)) if kind == "cols" else (len(index), shape[1])
    values = rng.standard_normal(many).astype("f4")
    made = ColumnsDelta if kind == "cols" else RowsDelta
    delta = made(shape, lambda: index, reader(values), scale)
    branch = delta.low_rank()
    assert branch.a.shape == (len(index), shape[1])
    assert (np.float32(branch.scale) * (branch.b @ branch.a) == delta.rows(0, shape[0])).all()
    twice = made(shape, lambda: index, reader(values), 2 * scale)
    assert (twice.rows(0, shape[0]) == 2 * delta.rows(0, shape[0])).all()  # linear in the scale


def test_several_adapters_add_in_order(tmp_path: Path):
    for seed in (0, 1):
        write_s2ft(tmp_path / str(seed), deltas(seed))
    first, second = (load(tmp_path / str(s), DENSE) for s in (0, 1))
    fused = fuse(DENSE, [(first, 0.7), (second, 0.3)])
    weight = tensors_of(DENSE)[f"{UP}.weight"]
    want = weight + slow((24, 16), *deltas(0)[UP], 0.7) + slow((24, 16), *deltas(1)[UP], 0.3)
    close(fused.tensors[f"{UP}.weight"].rows(0, 24), want)


def test_overlap(tmp_path: Path):
    two = {
        DOWN: ("cols", [3, 4, 23], np.ones((16, 3), "f4")),
        UP: ("cols", [1, 2], np.ones((24, 2), "f4")),
    }
    write_s2ft(tmp_path / "0", deltas())
    write_s2ft(tmp_path / "1", two)  # type: ignore[arg-type]
    found = overlap([load(tmp_path / s, DENSE) for s in ("0", "1")])
    assert found == {
        DOWN: Overlap(("cols", "cols"), (4, 3), shared=2, elements=2 * 16),
        UP: Overlap(("rows", "cols"), (3, 2), shared=0, elements=3 * 2),
    }
    assert overlap([load(tmp_path / "0", DENSE)]) == {}


def test_biases(tmp_path: Path):
    model = make_model(0.0, attention_bias=True, mlp_bias=True)
    write_s2ft(tmp_path / "s", deltas(), biases={UP: np.arange(24, dtype="f4")})
    adapter = load(tmp_path / "s", model)
    fused = fuse(model, [(adapter, 0.5)])
    want = tensors_of(model)[f"{UP}.bias"] + np.arange(24) / 2
    close(fused.tensors[f"{UP}.bias"].rows(0, 24), want)
    assert adapter.tensors_used == 7
    refused("adapter-module", tmp_path / "s", DENSE)  # a base without biases


INDEXES: dict[str, Any] = {
    "unsorted": np.asarray([3, 2, 11, 23], "i4"),
    "twice": np.asarray([2, 3, 3, 23], "i4"),
    "too large": np.asarray([2, 3, 11, 24], "i4"),
    "negative": np.asarray([-1, 3, 11, 23], "i4"),
    "floats": np.asarray([2, 3, 11, 23], "f4"),
    "empty": np.asarray([], "i4"),
    "two axes": np.asarray([[2, 3, 11, 23]], "i4"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_broken_indexes(tmp_path: Path, name: str):
    write_s2ft(tmp_path / "s", deltas())
    file = tmp_path / "s" / "adapter_model.safetensors"
    save_file(load_file(file) | {f"{DOWN}.s2_index": INDEXES[name]}, file)
    error = refused("adapter-invalid", tmp_path / "s", DENSE)
    assert error.tensor == f"{DOWN}.s2_index"


KINDS = {DOWN: "cols", UP: "rows", OUT: "cols"}
BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "kind": ({"kinds": KINDS | {OUT: "rows"}}, {}, "adapter-shape"),
    "unknown kind": ({"kinds": KINDS | {UP: "both"}}, {}, "adapter-invalid"),
    "no kind": ({"kinds": {DOWN: "cols", UP: "rows"}}, {}, "adapter-invalid"),
    "kind alone": ({"kinds": KINDS | {"x": "cols"}}, {}, "adapter-tensor-missing"),
    "key": ({"rank": 3}, {}, "adapter-invalid"),
    "digest": ({"base_sha256": "11" * 32}, {}, "adapter-base"),
    "zero": ({"scaling": 0.0}, {}, "adapter-empty"),
    "overflow": ({"scaling": 1e39}, {}, "value-overflow"),
    "nan": ({}, {f"{UP}.s2_delta": np.full((3, 16), np.nan, "f4")}, "value-not-finite"),
    "rows": ({}, {f"{DOWN}.s2_delta": np.ones((15, 4), "f4")}, "adapter-shape"),
    "name": ({}, {f"{DOWN}.s2": np.ones((16, 4), "f4")}, "adapter-tensor-unused"),
    "lone": ({}, {"model.layers.1.mlp.down_proj.s2_delta": np.ones(3, "f4")}, "adapter-invalid"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(tmp_path: Path, name: str):
    config, tensors, code = BROKEN[name]
    write_s2ft(tmp_path / "s", deltas())
    mend_json(tmp_path / "s" / "s2ft_config.json", **config)
    file = tmp_path / "s" / "adapter_model.safetensors"
    save_file(load_file(file) | tensors, file)
    refused(code, tmp_path / "s", DENSE)


def test_index_without_values(tmp_path: Path):
    write_s2ft(tmp_path / "s", deltas())
    file = tmp_path / "s" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(f"{UP}.s2_delta")
    save_file(tensors, file)
    refused("adapter-tensor-missing", tmp_path / "s", DENSE)


def test_separate_keeps_a_branch(tmp_path: Path):
    write_s2ft(tmp_path / "s", deltas())
    fused = fuse(SPARSE, [(load(tmp_path / "s", SPARSE), 1.0)], "separate")
    branch = fused.branches[UP]
    out, width = shape_of(SPARSE.spec, UP)
    assert (branch.b.shape, branch.a.shape) == ((out, 3), (3, width))
