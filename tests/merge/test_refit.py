"""Refit against a direct float64 solve, row by row; its bounds; its zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import InputRefused, UsageError
from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.merge.refit import DAMPING, refit_rows
from exporter.merge.workbench import Workbench
from exporter.sparsity.mask import Mask
from tests.merge.world import dense_delta, lora, losa, make_model, tensors_of

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def inputs(width: int, tokens: int = 400, seed: int = 0) -> Any:
    """Correlated inputs of very unequal size, as those of a model are; the third is dead."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((tokens, max(2, width // 4))) @ rng.standard_normal(
        (max(2, width // 4), width)
    )
    found = (shared + 0.3 * rng.standard_normal((tokens, width))) * np.exp(rng.normal(size=width))
    found[:, 2] = 0.0
    return found


def gram_of(x: Any) -> Any:
    return (x.T @ x).astype(np.float32)


def slow_refit(target: Any, kept: Any, gram: Any) -> Any:
    """The minimiser of `(w' - t)(H + lambda I)(w' - t)^T` on each row's support, directly."""
    damped = gram.astype(np.float64)
    damped += DAMPING * np.mean(np.diag(damped)) * np.eye(len(damped))
    found = np.zeros(target.shape)
    for i, support in enumerate(kept):
        on = np.flatnonzero(support)
        if on.size:
            right = damped[on] @ target[i].astype(np.float64)
            found[i, on] = np.linalg.solve(damped[np.ix_(on, on)], right)
    return found


def energies(rows: Any, gram: Any) -> Any:
    rows = np.asarray(rows, np.float64)
    return np.einsum("ij,jk,ik->i", rows, gram.astype(np.float64), rows)


def problem(width: int, rows: int, share: float, seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((rows, width)).astype(np.float32)
    kept = rng.random((rows, width)) < share
    kept[0] = False
    kept[-1] = True
    return target, kept, gram_of(inputs(width, seed=seed))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("width", [8, 33, 96])
def test_is_the_direct_solution(width: int, share: float) -> None:
    target, kept, gram = problem(width, 20, share, seed=width)
    want = slow_refit(target, kept, gram)
    found = refit_rows(target, kept, gram, steps=200, tolerance=1e-6)
    assert found.dtype == np.float32
    assert np.abs(found - want).max() <= 1e-3 * np.abs(want).max()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_stops_where_more_steps_gain_nothing(share: float) -> None:
    """What counts is the error of the outputs: within 1 % of the direct solution's."""
    target, kept, gram = problem(96, 20, share, seed=5)
    least = energies(slow_refit(target, kept, gram) - target, gram).sum()
    assert energies(refit_rows(target, kept, gram) - target, gram).sum() <= 1.01 * least


@given(st.integers(4, 40), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_never_worse_than_masking(width: int, share: float, seed: int) -> None:
    target, kept, gram = problem(width, 6, share, seed)
    found = refit_rows(target, kept, gram)
    masked = energies(np.where(kept, target, 0) - target, gram)
    assert (energies(found - target, gram) <= masked * (1 + 1e-4) + 1e-6).all()
    assert not found.view(np.uint32)[~kept].any()


def test_better_than_masking_where_inputs_correlate() -> None:
    target, kept, gram = problem(96, 64, 0.3, seed=3)
    masked = energies(np.where(kept, target, 0) - target, gram)[1:-1]
    assert (energies(refit_rows(target, kept, gram) - target, gram)[1:-1] < 0.9 * masked).all()


def test_ends_of_the_scale() -> None:
    """A full support gives the target itself, an empty one zeros."""
    target, kept, gram = problem(24, 5, 0.5, seed=1)
    found = refit_rows(target, kept, gram)
    np.testing.assert_array_equal(found[-1], target[-1])
    assert not found[0].any()


def test_dead_inputs_keep_their_masked_weight() -> None:
    target, kept, gram = problem(24, 30, 0.5, seed=2)
    assert not gram[2].any()
    found = refit_rows(target, kept, gram)
    np.testing.assert_array_equal(found[:, 2], np.where(kept[:, 2], target[:, 2], 0))


def test_without_any_activation_it_is_the_masked_merge() -> None:
    target, kept, gram = problem(24, 5, 0.5, seed=2)
    found = refit_rows(target, kept, np.zeros_like(gram))
    np.testing.assert_array_equal(found, np.where(kept, target, np.float32(0)))


def test_the_target_is_not_changed() -> None:
    target, kept, gram = problem(24, 5, 0.5, seed=2)
    before = target.copy()
    refit_rows(target, kept, gram)
    np.testing.assert_array_equal(target, before)


# --- in the fused model ------------------------------------------------------------------------


def bench_of(folder: Path, checked: Any, *modules: str) -> tuple[Workbench, dict[str, Any]]:
    bench, grams = Workbench(folder), {}
    for i, module in enumerate(modules):
        width = tensors_of(checked)[f"{module}.weight"].shape[1]
        grams[module] = gram_of(inputs(width, seed=i))
        bench.keep_gram([module], grams[module])
    return bench, grams


def rows(fused: Any, module: str) -> Any:
    tensor = fused.tensors[f"{module}.weight"]
    return tensor.rows(0, tensor.shape[0])


def test_fused_weights_are_the_solution_and_keep_the_mask(tmp_path: Path) -> None:
    checked = make_model()
    adapter = lora(checked, Q0, DOWN1)
    bench, grams = bench_of(tmp_path, checked, Q0, DOWN1)
    fused = fuse(checked, [(adapter, 1.0)], "refit", bench=bench)
    for module in (Q0, DOWN1):
        base = tensors_of(checked)[f"{module}.weight"]
        target = base + dense_delta(adapter, module)
        found, want = rows(fused, module), slow_refit(target, base != 0, grams[module])
        assert np.abs(found - want).max() <= 1e-2 * np.abs(want).max()
        assert not found.view(np.uint32)[base == 0].any()
        assert fused.mask(f"{module}.weight") == Mask.from_bool(base != 0)
        assert fused.record["modules"][module]["policy"] == "refit"


@pytest.mark.parametrize("step", [1, 7, 100, 300])
def test_block_size_changes_no_bit(tmp_path: Path, step: int) -> None:
    up = "model.layers.0.mlp.up_proj"
    checked = make_model(hidden_size=48, intermediate_size=300)
    bench, _ = bench_of(tmp_path, checked, up)
    fused = fuse(checked, [(lora(checked, up), 1.0)], "refit", bench=bench)
    tensor = fused.tensors[f"{up}.weight"]
    blocks = [tensor.rows(r, min(r + step, 300)) for r in range(0, 300, step)]
    np.testing.assert_array_equal(
        np.concatenate(blocks).view(np.uint32), tensor.rows(0, 300).view(np.uint32)
    )


def test_rows_are_solved_once(tmp_path: Path) -> None:
    checked = make_model()
    bench, _ = bench_of(tmp_path, checked, Q0)
    fused = fuse(checked, [(lora(checked, Q0), 1.0)], "refit", bench=bench)
    reads: Any = checked.checkpoint
    before = len(reads.reads)
    first = rows(fused, Q0)
    first[:] = 9.0  # rows are fresh
    assert len(reads.reads) == before
    assert not (rows(fused, Q0) == 9.0).any()


def test_the_norm_lost_is_that_of_the_difference(tmp_path: Path) -> None:
    checked = make_model()
    adapter = lora(checked, Q0)
    bench, _ = bench_of(tmp_path, checked, Q0)
    fused = fuse(checked, [(adapter, 1.0)], "refit", bench=bench)
    target = tensors_of(checked)[f"{Q0}.weight"] + dense_delta(adapter, Q0)
    figures = measure(fused)[Q0]
    assert figures["norm_lost"] == pytest.approx(np.linalg.norm(rows(fused, Q0) - target), rel=1e-5)
    masked = measure(fuse(checked, [(adapter, 1.0)], "mask"))[Q0]
    assert figures["norm_lost"] >= masked["norm_lost"]  # a solve moves what is kept, too
    assert figures["moved"] == 0


def test_an_exact_merge_stays_exact(tmp_path: Path) -> None:
    checked = make_model()
    fused = fuse(checked, [(losa(checked, Q0), 1.0)], "refit", bench=Workbench(tmp_path))
    assert fused.record["modules"][Q0]["policy"] == "exact"


def test_without_calibration() -> None:
    checked = make_model()
    with pytest.raises(UsageError) as caught:
        fuse(checked, [(lora(checked, Q0), 1.0)], "refit")
    assert caught.value.code == "calibration-needed"
    assert "--calibration" in str(caught.value)


def test_activations_that_overflowed(tmp_path: Path) -> None:
    gram = np.eye(4, dtype=np.float32)
    gram[1, 1] = np.inf
    with pytest.raises(InputRefused) as caught:
        Workbench(tmp_path).keep_gram([Q0], gram)
    assert (caught.value.code, caught.value.tensor) == ("value-not-finite", Q0)
