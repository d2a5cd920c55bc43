"""Reprune against a slow choice, row by row and group by group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.merge.reprune import RepruneMerge, keep_as_many
from exporter.merge.workbench import Workbench
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import Pattern
from tests.merge.test_refit import gram_of, inputs
from tests.merge.world import dense_delta, lora, make_model, tensors_of

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def slow_choice(scores: Any, kept: Any, group: int) -> Any:
    """Sorted by (score, lower index first), as many as before."""
    found = np.zeros(kept.shape, bool)
    for row in range(len(kept)):
        for start in range(0, kept.shape[1], group):
            part = range(start, min(start + group, kept.shape[1]))
            best = sorted(part, key=lambda j: (-scores[row, j], j))
            for j in best[: int(kept[row, part.start : part.stop].sum())]:
                found[row, j] = True
    return found


@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([4, 8, 16, 0]),
    st.integers(0, 10_000),
)
def test_is_the_slow_choice(rows: int, width: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (rows, width)).astype(np.float32)  # many ties
    kept = rng.random((rows, width)) < 0.4
    size = group or width
    found = keep_as_many(scores, kept, size)
    np.testing.assert_array_equal(found, slow_choice(scores, kept, size))


def nm_kept(rng: Any, n: int, m: int, shape: tuple[int, int]) -> Any:
    scores = rng.random(shape)
    order = scores.reshape(-1, m).argsort(1).argsort(1)
    return (order < n).reshape(shape)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (2, 8), (6, 16)])
def test_n_of_m_stays_n_of_m(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    kept = nm_kept(rng, n, m, (8, 64))
    weight = np.where(kept, rng.standard_normal((8, 64)), 0).astype(np.float32)
    delta = rng.standard_normal((8, 64)).astype(np.float32)
    merge = RepruneMerge(Pattern("n:m", n / m, n, m), None)
    new = merge.select(weight, kept, delta)
    assert (new.reshape(-1, m).sum(1) == n).all()
    assert not np.array_equal(new, kept)
    np.testing.assert_array_equal(new, slow_choice(np.abs(weight + delta), kept, m))


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_structured_masks_do_not_move(kind: Any) -> None:
    kept = np.ones((6, 8), bool)
    kept[(slice(2, 4),) if kind == "rows" else (slice(None), slice(2, 4))] = False
    delta = np.full((6, 8), 9.0, np.float32)
    weight = kept.astype(np.float32)
    merge = RepruneMerge(Pattern(kind, 0.5), None)
    np.testing.assert_array_equal(merge.select(weight, kept, delta), kept)
    np.testing.assert_array_equal(merge.merge(weight.copy(), kept, delta), (weight + delta) * kept)


@pytest.mark.parametrize("calibrated", [False, True])
def test_fused_model(tmp_path: Path, calibrated: bool) -> None:
    checked = make_model(0.7)
    adapter = lora(checked, Q0, DOWN1)
    bench = None
    if calibrated:
        bench = Workbench(tmp_path)
        bench.keep_gram([Q0], gram_of(inputs(16)))
        bench.keep_gram([DOWN1], gram_of(inputs(24)))
    fused = fuse(checked, [(adapter, 1.0)], "reprune", bench=bench)
    figures = measure(fused)
    for module, width in ((Q0, 16), (DOWN1, 24)):
        base = tensors_of(checked)[f"{module}.weight"]
        target = base + dense_delta(adapter, module)
        scores = np.abs(target)
        if calibrated:
            scores = scores * np.sqrt(np.diag(gram_of(inputs(width)).astype(np.float64)))
        kept = slow_choice(scores, base != 0, width)
        tensor = fused.tensors[f"{module}.weight"]
        found = tensor.rows(0, tensor.shape[0])
        np.testing.assert_allclose(found, np.where(kept, target, 0), rtol=1e-5, atol=1e-6)
        assert not found.view(np.uint32)[~kept].any()
        assert fused.mask(tensor.name) == Mask.from_bool(kept)
        assert figures[module]["moved"] == np.count_nonzero(kept & (base == 0)) > 0
        lost = np.linalg.norm(np.where(kept, 0, target))
        assert figures[module]["norm_lost"] == pytest.approx(lost, rel=1e-4)
    assert not fused.densified


def test_other_linears_keep_their_masks() -> None:
    checked = make_model()
    fused = fuse(checked, [(lora(checked, Q0), 1.0)], "reprune")
    name = f"{DOWN1}.weight"
    assert fused.mask(name) == Mask.from_bool(tensors_of(checked)[name] != 0)


@pytest.mark.parametrize("step", [1, 7, 64, 200])
def test_block_size_changes_no_bit(step: int) -> None:
    up = "model.layers.0.mlp.up_proj"
    checked = make_model(hidden_size=48, intermediate_size=200)
    fused = fuse(checked, [(lora(checked, up), 0.3)], "reprune")
    tensor = fused.tensors[f"{up}.weight"]
    blocks = [tensor.rows(r, min(r + step, 200)) for r in range(0, 200, step)]
    np.testing.assert_array_equal(
        np.concatenate(blocks).view(np.uint32), tensor.rows(0, 200).view(np.uint32)
    )
