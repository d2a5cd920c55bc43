"""Laws of every merge: linear in the weight, blind to block sizes and to the order of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from backends.hf.target import HfTarget
from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.check.model import check_model
from exporter.merge.fuse import fuse
from exporter.merge.rows import MergedRows
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import factors as random_factors
from tests.adapters.forge import targeted, tensors_of, write_lora
from tests.merge.world import lora, losa, make_model
from tests.tiny import save_tiny

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"
HEAD = "lm_head"
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def weights(fused: FusedModel, module: str) -> Any:
    tensor = fused.tensors[f"{module}.weight"]
    return tensor.rows(0, tensor.shape[0])


def merged(weight: float, policy: str, kind: str = "lora") -> tuple[Any, FusedModel]:
    checked = make_model(0.5)
    adapter = losa(checked, Q0, DOWN1) if kind == "losa" else lora(checked, Q0, DOWN1, HEAD)
    base = weights(fuse(checked, []), DOWN1)
    return base, fuse(checked, [(adapter, weight)], policy)


@FEW
@given(st.floats(-4, 4).filter(lambda w: abs(w) > 1e-3), st.sampled_from(["mask", "densify"]))
def test_linear_in_the_weight(weight: float, policy: str) -> None:
    base, one = merged(1.0, policy)
    _, scaled = merged(weight, policy)
    want = base + weight * (weights(one, DOWN1).astype(np.float64) - base)
    room = 4 * np.finfo(np.float32).eps * (1 + abs(weight)) * np.abs(want).max()
    assert np.abs(weights(scaled, DOWN1) - want).max() <= room


@FEW
@given(st.integers(-3, 3), st.sampled_from(["lora", "losa"]))
def test_powers_of_two_scale_the_delta_exactly(power: int, kind: str) -> None:
    checked = make_model(0.0)
    adapter = losa(checked, Q0) if kind == "losa" else lora(checked, Q0)
    (delta,) = adapter.deltas.values()
    rows = getattr(delta, "rows")  # noqa: B009 - a delta, not one bound to a base
    doubled = fuse(checked, [(adapter, 2.0**power)])
    found = doubled.tensors[f"{Q0}.weight"].rows
    assert isinstance(found, MergedRows)
    assert np.array_equal(found.delta.rows(0, 16), rows(0, 16) * np.float32(2.0**power))


@FEW
@given(st.lists(st.integers(1, 39), max_size=6), st.sampled_from([Q0, DOWN1, HEAD]))
def test_the_size_of_row_blocks_does_not_change_a_bit(cuts: list[int], module: str) -> None:
    checked = make_model(0.5)
    adapters: list[tuple[Adapter, float]] = [
        (lora(checked, Q0, DOWN1, HEAD), 0.7),
        (losa(checked, Q0, DOWN1), 0.3),
    ]
    fused = fuse(checked, adapters, "mask")
    tensor = fused.tensors[f"{module}.weight"]
    rows = tensor.shape[0]
    edges = sorted({0, rows, *(c for c in cuts if c < rows)})
    parts = [tensor.rows(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    whole = tensor.rows(0, rows)
    assert np.array_equal(np.concatenate(parts).view(np.uint32), whole.view(np.uint32))


def test_adapters_add_up_in_the_order_given() -> None:
    checked = make_model(0.0)
    one, two = lora(checked, Q0, seed=1), lora(checked, Q0, DOWN1, seed=2)
    both = fuse(checked, [(one, 0.7), (two, 0.3)])
    base, first = weights(fuse(checked, []), Q0), weights(fuse(checked, [(one, 1.0)]), Q0)
    second = weights(fuse(checked, [(two, 1.0)]), Q0)
    want = base + 0.7 * (first.astype(np.float64) - base) + 0.3 * (second.astype(np.float64) - base)
    assert np.abs(weights(both, Q0) - want).max() <= 1e-5
    assert [a["weight"] for a in both.record["adapters"]] == [0.7, 0.3]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama2", tmp_path_factory.mktemp("shards") / "whole", sparsity=0.5)


def reshard(source: Path, out: Path, shards: int, seed: int) -> Path:
    """The same tensors, dealt at random over `shards` files."""
    out.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(next(source.glob("*.safetensors")))
    dice = np.random.default_rng(seed)
    names = [str(n) for n in dice.permutation(sorted(tensors))]
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    place = {n: files[i % shards] for i, n in enumerate(names)}
    for file in files:
        held = {n: tensors[n] for n in names if place[n] == file}
        save_file(held, out / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}}
    (out / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": place}))
    return out


@pytest.mark.parametrize(("shards", "seed"), [(2, 0), (2, 1), (5, 2)])
def test_the_order_of_shards_does_not_change_a_byte(
    plain: Path, tmp_path: Path, shards: int, seed: int
) -> None:
    dealt = reshard(plain, tmp_path / "dealt", shards, seed)
    spec = check_model(Checkpoint.open(plain)).spec
    modules = targeted(spec, "q", "down")
    pairs = random_factors(spec, modules)
    write_lora(tmp_path / "a", tensors_of(pairs), target_modules=["q_proj", "down_proj"])

    def written(folder: Path, out: Path) -> dict[str, bytes]:
        checked = check_model(Checkpoint.open(folder))
        adapter = load_adapter(tmp_path / "a", spec, BaseIdentity(None, lambda: ""))
        out.mkdir()
        HfTarget().lower(fuse(checked, [(adapter, 0.5)], "mask"), out, silent)
        return {file.name: file.read_bytes() for file in out.iterdir()}

    left, right = written(plain, tmp_path / "left"), written(dealt, tmp_path / "right")
    assert "model.safetensors" in left
    assert left == right
