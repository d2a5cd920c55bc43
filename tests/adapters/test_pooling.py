"""Pooling adapters: groups that do not divide, normalisers, masks, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from exporter.adapters.pool_delta import PoolDelta
from exporter.adapters.pool_groups import group_of, group_sizes
from exporter.adapters.pool_norm import normalise
from exporter.adapters.pooling import write_pooling
from exporter.errors import InputRefused, UsageError
from exporter.merge.fuse import fuse
from exporter.merge.shares import delta_shares
from exporter.sparsity.mask import Mask
from tests.adapters.forge import mend_json, targeted
from tests.adapters.own import bits, close, in_blocks, load, refused, rows_of
from tests.merge.world import make_model, shape_of, tensors_of

MODEL = make_model(0.6)
WEIGHTS = tensors_of(MODEL)
Q, UP, DOWN = (targeted(MODEL.spec, r)[0] for r in ("q", "up", "down"))
PLAIN: dict[str, Any] = {
    "pool": "mean",
    "grouping": "balanced",
    "scale": 1.5,
    "train_mask": "exact",
}


def tables(counts: Any = (5, 7), seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return {m: {"pool_G": rng.standard_normal(counts).astype("f4")} for m in (Q, UP, DOWN)}


def members(size: int, groups: int, rule: str, group_size: int | None = None) -> list[list[int]]:
    """The groups as lists, straight from their definitions."""
    if rule == "strided":
        return [[j for j in range(size) if j % groups == k] for k in range(groups)]
    if rule == "balanced":
        return [list(range(k * size // groups, (k + 1) * size // groups)) for k in range(groups)]
    width = group_size or -(-size // groups)
    return [list(range(k * width, min((k + 1) * width, size))) for k in range(groups)]


def slow(x: Any, g: Any, shape: tuple[int, int], rule: str, pool: str, size: Any = None) -> Any:
    """The adapter's own forward in float64: pool, multiply by G, expand."""
    gout, gin = g.shape
    pooled = np.zeros((len(x), gin))
    for b, group in enumerate(members(shape[1], gin, rule, size)):
        pooled[:, b] = x[:, group].mean(axis=1) if pool == "mean" else x[:, group].sum(axis=1)
    z = pooled @ g.astype(np.float64).T
    y = np.zeros((len(x), shape[0]))
    for a, group in enumerate(members(shape[0], gout, rule, size)):
        y[:, group] = z[:, a : a + 1]
    return y


def as_delta(g: Any, shape: tuple[int, int], rule: Any, pool: str, size: Any = None) -> PoolDelta:
    a, b = (group_of(d, k, rule, size) for d, k in zip(shape, g.shape, strict=True))
    weights = group_sizes(b, g.shape[1]) if pool == "mean" else 1
    table = (g.astype(np.float64) / weights).astype(np.float32)
    return PoolDelta(shape, lambda: table, lambda: a, lambda: b)


@given(
    size=st.integers(1, 60),
    share=st.floats(0, 1),
    rule=st.sampled_from(["balanced", "strided", "ceil", "size"]),
)
def test_groups_are_a_partition(size: int, share: float, rule: Any):
    groups = max(1, round(share * size))
    group_size = -(-size // groups) if rule == "size" else None
    if rule in ("ceil", "size"):  # no group stays empty
        groups = -(-size // -(-size // groups))
    found = group_of(size, groups, rule, group_size)
    want = members(size, groups, rule, group_size)
    assert [np.flatnonzero(found == k).tolist() for k in range(groups)] == want
    assert group_sizes(found, groups).min() >= 1
    if rule == "balanced":
        assert np.ptp(group_sizes(found, groups)) <= 1


SIZES = [(12, 4), (13, 4), (11, 5), (5, 5), (5, 1), (4096, 348), (11008, 348)]


@pytest.mark.parametrize(("size", "groups"), SIZES)
@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_delta_is_pool_then_g_then_expand(size: int, groups: int, pool: str, side: str):
    rng = np.random.default_rng(size)
    shape, counts = ((9, size), (4, groups)) if side == "in" else ((size, 9), (groups, 4))
    g, x = rng.standard_normal(counts).astype("f4"), rng.standard_normal((3, shape[1]))
    dense = as_delta(g, shape, "balanced", pool).rows(0, shape[0]).astype(np.float64)
    close(x @ dense.T, slow(x, g, shape, "balanced", pool))


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 40),
    width=st.integers(1, 40),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rule=st.sampled_from(["balanced", "strided"]),
    pool=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 999),
)
def test_any_size(out: int, width: int, shares: Any, rule: str, pool: str, seed: int):
    rng = np.random.default_rng(seed)
    counts = max(1, round(shares[0] * out)), max(1, round(shares[1] * width))
    g, x = rng.standard_normal(counts).astype("f4"), rng.standard_normal((3, width))
    delta = as_delta(g, (out, width), rule, pool)
    dense = delta.rows(0, out)
    close(x @ dense.T.astype(np.float64), slow(x, g, (out, width), rule, pool))
    assert (bits(in_blocks(delta, None, 7)) == bits(dense)).all()
    branch = delta.low_rank()  # exact, and of the smaller rank
    assert branch.a.shape[0] == min(counts)
    assert (branch.b @ branch.a == dense).all()


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("rule", ["balanced", "ceil", "size", "strided"])
def test_a_file_of_every_grouping(tmp_path: Path, pool: str, rule: str):
    config = PLAIN | {"pool": pool, "grouping": rule, "train_mask": "none"}
    pairs = tables((5, 5))
    if rule == "ceil":
        pairs = tables((4, 6))  # 16 and 24 rows in fours and sixes; 16 and 24 columns
        pairs[Q] = {"pool_G": pairs[Q]["pool_G"][:, :4].copy()}
        pairs[UP] = {"pool_G": pairs[UP]["pool_G"][:, :4].copy()}
    if rule == "size":
        config["group_size"] = 7
        pairs = {
            m: {"pool_G": np.random.default_rng(1).standard_normal(c).astype("f4")}
            for m, c in ((Q, (3, 3)), (UP, (4, 3)), (DOWN, (3, 4)))
        }
    write_pooling(tmp_path / "p", config, pairs)
    adapter = load(tmp_path / "p", MODEL)
    assert (adapter.family, adapter.masked, adapter.tensors_used) == ("pooling", False, 3)
    for module, parts in pairs.items():
        shape = shape_of(MODEL.spec, module)
        want = slow(
            np.eye(shape[1]), parts["pool_G"], shape, rule, pool, config.get("group_size")
        ).T
        close(rows_of(adapter.deltas[module], None), 1.5 * want)


def slow_norm(norm: str, g: Any, gamma: Any) -> Any:
    """Straight from the definitions, float64."""
    return {
        "none": g,
        "wd": g,
        "maxnorm": g * min(1.0, 0.5 / np.linalg.norm(g)),
        "fro": gamma[0] * g / (np.linalg.norm(g) + 1e-3),
        "row": (gamma / (np.linalg.norm(g, axis=1) + 1e-3))[:, None] * g,
        "spectral": g * min(1.0, 0.5 / np.linalg.norm(g, 2)),
    }[norm]


@pytest.mark.parametrize("norm", ["none", "wd", "maxnorm", "fro", "row", "spectral"])
def test_normalisers_fold(tmp_path: Path, norm: str):
    rng = np.random.default_rng(4)
    pairs = tables()
    if norm in ("fro", "row"):
        for parts in pairs.values():
            parts["pool_gamma"] = rng.standard_normal(1 if norm == "fro" else 5).astype("f4")
    extra = {"norm": norm, "eps": 1e-3, "train_mask": "none"}
    if norm in ("maxnorm", "spectral"):
        extra["tau"] = 0.5
    write_pooling(tmp_path / "p", PLAIN | extra, pairs)
    adapter = load(tmp_path / "p", MODEL)
    for module, parts in pairs.items():
        g = parts["pool_G"].astype(np.float64)
        folded = slow_norm(norm, g, parts.get("pool_gamma", np.ones(1)))
        shape = shape_of(MODEL.spec, module)
        want = 1.5 * slow(np.eye(shape[1]), folded, shape, "balanced", "mean").T
        close(rows_of(adapter.deltas[module], None), want)


@pytest.mark.parametrize("norm", ["maxnorm", "spectral"])
def test_a_bound_that_does_not_bite_changes_nothing(norm: Any):
    g = np.random.default_rng(0).standard_normal((3, 4))
    assert (normalise(g, norm, 1e3, 0.0, None) == g).all()


@pytest.mark.parametrize("mode", ["exact", "ste"])
def test_under_the_mask(tmp_path: Path, mode: str):
    masks = {m: Mask.from_bool(WEIGHTS[f"{m}.weight"] != 0) for m in (Q, UP, DOWN)}
    write_pooling(tmp_path / "p", PLAIN | {"train_mask": mode}, tables(), masks)
    adapter = load(tmp_path / "p", MODEL)
    assert adapter.masked and adapter.tensors_used == 6
    fused = fuse(MODEL, [(adapter, 1.0)])
    for module, parts in tables().items():
        weight = WEIGHTS[f"{module}.weight"]
        merged = fused.tensors[f"{module}.weight"].rows(0, len(weight))
        assert not bits(merged)[weight == 0].any()
        delta = slow(np.eye(weight.shape[1]), parts["pool_G"], weight.shape, "balanced", "mean").T
        close(merged, np.where(weight != 0, weight + 1.5 * delta, 0.0))


def test_another_mask_is_refused(tmp_path: Path):
    masks = {m: Mask.from_bool(np.ones(shape_of(MODEL.spec, m), bool)) for m in (Q, UP, DOWN)}
    write_pooling(tmp_path / "p", PLAIN, tables(), masks)
    with pytest.raises(InputRefused) as caught:
        fuse(MODEL, [(load(tmp_path / "p", MODEL), 1.0)])
    assert caught.value.code == "mask-mismatch"


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_what_a_mask_discards_has_a_closed_form(tmp_path: Path, pool: str):
    """`s^2 sum_ab rho_ab |O_a| |I_b| (G_ab / w_b)^2`, rho the pruned share of block (a, b)."""
    config = PLAIN | {"pool": pool, "train_mask": "none"}
    write_pooling(tmp_path / "p", config, tables())
    adapter = load(tmp_path / "p", MODEL)
    shares = {s.module: s for s in delta_shares(MODEL, [(adapter, 1.0)])}
    for module, parts in tables().items():
        weight, g = WEIGHTS[f"{module}.weight"], parts["pool_G"].astype(np.float64)
        total = 0.0
        for a, rows in enumerate(members(weight.shape[0], 5, "balanced")):
            for b, columns in enumerate(members(weight.shape[1], 7, "balanced")):
                pruned = (weight[np.ix_(rows, columns)] == 0).mean()
                w = len(columns) if pool == "mean" else 1
                total += pruned * len(rows) * len(columns) * (1.5 * g[a, b] / w) ** 2
        lost = shares[module].outside * shares[module].norm
        assert lost == pytest.approx(np.sqrt(total), rel=1e-5)
    with pytest.raises(UsageError) as caught:
        fuse(MODEL, [(adapter, 1.0)])
    assert caught.value.code == "merge-policy-needed"


def test_a_stored_table_is_checked_against_g(tmp_path: Path):
    pairs = tables()
    for module, parts in pairs.items():
        sizes = [len(m) for m in members(shape_of(MODEL.spec, module)[1], 7, "balanced")]
        parts["pool_C"] = (1.5 * parts["pool_G"] / np.asarray(sizes)).astype("f4")
    write_pooling(tmp_path / "both", PLAIN, pairs)
    both = load(tmp_path / "both", MODEL)
    write_pooling(tmp_path / "table", PLAIN, {m: {"pool_C": p["pool_C"]} for m, p in pairs.items()})
    alone = load(tmp_path / "table", MODEL)
    for module in pairs:
        weight = WEIGHTS[f"{module}.weight"]
        close(rows_of(both.deltas[module], weight), rows_of(alone.deltas[module], weight))
    pairs[Q]["pool_C"] = pairs[Q]["pool_C"] * 1.01
    write_pooling(tmp_path / "stale", PLAIN, pairs)
    assert "stored table" in refused("adapter-invalid", tmp_path / "stale", MODEL).found


def test_empty_groups_are_refused(tmp_path: Path):
    """`ceil` on 16 columns in 7 groups: threes fill six of them."""
    write_pooling(tmp_path / "p", PLAIN | {"grouping": "ceil"}, tables((4, 7)))
    assert "fill 6 of 7 groups" in refused("adapter-invalid", tmp_path / "p", MODEL).found


@pytest.mark.parametrize("norm", ["layernorm", "RMSNorm", "batch_norm"])
def test_normalisers_of_the_data_are_refused_by_name(tmp_path: Path, norm: str):
    write_pooling(tmp_path / "p", PLAIN, tables())
    mend_json(tmp_path / "p" / "pool_config.json", norm=norm)
    error = refused("adapter-option", tmp_path / "p", MODEL)
    assert norm in error.found and "depends on the data" in error.found


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "norm": ({"norm": "softmax"}, "adapter-invalid"),
    "tau": ({"norm": "maxnorm"}, "adapter-invalid"),
    "gamma": ({"norm": "fro"}, "adapter-tensor-missing"),
    "pooling": ({"pool": "max"}, "adapter-invalid"),
    "size": ({"grouping": "size"}, "adapter-invalid"),
    "key": ({"dropout": 0.1}, "adapter-invalid"),
    "mask path": ({"mask": "../mask.safetensors"}, "adapter-invalid"),
    "mask file": ({"mask": "mask.safetensors"}, "adapter-invalid"),
    "scale": ({"scale": 1e39}, "value-overflow"),
    "no scale": ({"scale": 0.0}, "adapter-empty"),
    "digest": ({"base_sha256": "00" * 32}, "adapter-base"),
    "table": ({"sizes": {Q: [5, 7]}}, "adapter-invalid"),
    "more": (
        {"sizes": {m: [5, 7] for m in (Q, UP, DOWN, "model.layers.1.self_attn.q_proj")}},
        "adapter-tensor-missing",
    ),
    "counts": ({"sizes": None}, "adapter-invalid"),
    "too many": ({"sizes": None, "gin": 25, "gout": 5}, "adapter-invalid"),
    "shape": ({"sizes": None, "gin": 6, "gout": 5}, "adapter-shape"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_broken_configs(tmp_path: Path, name: str):
    changes, code = CONFIGS[name]
    write_pooling(tmp_path / "p", PLAIN, tables())
    mend_json(tmp_path / "p" / "pool_config.json", **changes)
    refused(code, tmp_path / "p", MODEL)


@pytest.mark.parametrize(
    ("name", "values", "code"),
    [
        (f"{Q}.pool_H", np.ones((5, 7), "f4"), "adapter-tensor-unused"),
        (f"{Q}.pool_gamma", np.ones(1, "f4"), "adapter-tensor-unused"),
        (f"{Q}.pool_G", np.full((5, 7), np.inf, "f4"), "value-not-finite"),
        ("base_model.model.x.pool_G", np.ones((5, 7), "f4"), "adapter-module"),
    ],
)
def test_broken_tensors(tmp_path: Path, name: str, values: Any, code: str):
    write_pooling(tmp_path / "p", PLAIN, tables())
    file = tmp_path / "p" / "adapter_model.safetensors"
    save_file(load_file(file) | {name: values}, file)
    refused(code, tmp_path / "p", MODEL)
