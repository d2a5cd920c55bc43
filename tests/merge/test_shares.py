"""The refusal, its table, and the figures of a merge."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from exporter.adapters.base import Adapter
from exporter.adapters.lowrank import LowRankDelta
from exporter.errors import InputRefused
from exporter.merge.base import MergePolicyNeeded
from exporter.merge.fuse import fuse
from exporter.merge.measure import measure
from exporter.merge.shares import delta_shares
from exporter.merge.table import render_shares, total_share
from exporter.store.dtypes import DType
from tests.merge.world import dense_delta, lora, losa, make_model, tensors_of

Q0 = "model.layers.0.self_attn.q_proj"
DOWN1 = "model.layers.1.mlp.down_proj"


def test_shares_against_float64():
    checked = make_model()
    adapter = lora(checked, Q0, DOWN1)
    for share in delta_shares(checked, [(adapter, 2.0)]):
        delta = 2.0 * dense_delta(adapter, share.module)
        pruned = tensors_of(checked)[f"{share.module}.weight"] == 0
        norm = np.linalg.norm(delta)
        assert share.norm == pytest.approx(norm, rel=1e-6)
        assert share.outside == pytest.approx(np.linalg.norm(delta * pruned) / norm, rel=1e-6)
        assert share.new_nonzeros == np.count_nonzero(pruned)
        assert share.density == pytest.approx(1 - pruned.mean())


def test_half_the_zeros_hold_seven_tenths_of_the_norm():
    """sqrt(1/2) of the norm lies where a half-pruned base has zeros."""
    checked = make_model(hidden_size=64, intermediate_size=256)
    (share,) = delta_shares(checked, [(lora(checked, DOWN1, rank=8), 1.0)])
    assert share.outside == pytest.approx(0.5**0.5, abs=0.02)


def test_a_masked_delta_has_no_share_outside():
    checked = make_model()
    (share,) = delta_shares(checked, [(losa(checked, Q0), 1.0)])
    assert (share.outside, share.new_nonzeros) == (0.0, 0)


@pytest.mark.parametrize("policy", [None, "exact"])
def test_no_silent_default_on_a_sparse_base(policy: str | None):
    """wanda#10, LLM-Pruner#24, sparsegpt#17: a merge that gives the sparsity away."""
    checked = make_model(dense=("q",))
    with pytest.raises(MergePolicyNeeded) as caught:
        fuse(checked, [(lora(checked, Q0, DOWN1), 1.0)], policy)
    error = caught.value
    assert (error.code, error.exit_code) == ("merge-policy-needed", 2)
    assert [s.module for s in error.shares] == [Q0, DOWN1]
    assert [s.new_nonzeros > 0 for s in error.shares] == [False, True]
    assert "1 of 2 modules" in error.found
    for name in ("mask", "separate", "densify"):
        assert name in error.found


def test_table_names_modules_shares_and_costs():
    checked = make_model()
    shares = delta_shares(checked, [(lora(checked, Q0, DOWN1), 1.0)])
    out = io.StringIO()
    render_shares(shares, Console(file=out, width=120, force_terminal=False))
    text = out.getvalue()
    for share in shares:
        line = next(row for row in text.splitlines() if share.module in row)
        assert f"{share.outside:.1%}" in line
        assert f"{share.norm:.4g}" in line
    for option in ("--on-merge mask", "--on-merge separate", "--on-merge densify"):
        assert option in text


def test_total_share_weighs_by_norm():
    checked = make_model(dense=("q",))
    shares = delta_shares(checked, [(lora(checked, Q0, DOWN1), 1.0)])
    norm, outside = total_share(shares)
    lost = shares[1].norm * shares[1].outside
    assert norm == pytest.approx(np.hypot(shares[0].norm, shares[1].norm))
    assert outside == pytest.approx(lost / norm)


# --- figures ---------------------------------------------------------------------------------


def test_figures_of_a_masked_merge():
    checked = make_model()
    adapter = lora(checked, Q0)
    fused = fuse(checked, [(adapter, 1.0)], "mask")
    figures = measure(fused)[Q0]
    delta = dense_delta(adapter, Q0)
    kept = tensors_of(checked)[f"{Q0}.weight"] != 0
    assert figures["policy"] == "mask"
    assert figures["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-6)
    assert figures["norm_lost"] == pytest.approx(np.linalg.norm(delta * ~kept), rel=1e-6)
    assert figures["changed"] == np.count_nonzero(kept)
    assert figures["vanished"] is None


def test_densify_loses_nothing():
    checked = make_model()
    figures = measure(fuse(checked, [(lora(checked, Q0), 1.0)], "densify"))[Q0]
    assert (figures["norm_lost"], figures["changed"]) == (0.0, 256)


def test_deltas_that_rounding_swallows_are_counted():
    """A merge in bfloat16 that changes nothing (unsloth#3091, torchtune#1101)."""
    checked = make_model()
    adapter = lora(checked, Q0, scale=1e-3)
    fused = fuse(checked, [(adapter, 1.0)], "mask")
    base = tensors_of(checked)[f"{Q0}.weight"]
    kept = base != 0
    merged = np.where(kept, base + dense_delta(adapter, Q0), 0.0).astype(np.float32)
    same = base.astype(ml_dtypes.bfloat16) == merged.astype(ml_dtypes.bfloat16)
    figures = measure(fused, {f"{Q0}.weight": DType.BF16})[Q0]
    assert figures["vanished"] == np.count_nonzero(same & kept)
    assert 0 < figures["vanished"] < figures["changed"]
    assert measure(fused, {f"{Q0}.weight": DType.F32})[Q0]["vanished"] == 0


def test_a_delta_that_the_policy_drops_whole():
    """Every element of the delta lies on a zero of the base: the export would equal the base."""
    checked = make_model()
    weight = tensors_of(checked)[f"{Q0}.weight"]
    weight[:, 0] = 0.0
    a: Any = np.zeros((1, 16), np.float32)
    a[0, 0] = 1.0
    b: Any = np.ones((16, 1), np.float32)
    delta = LowRankDelta((16, 16), lambda: a, lambda: b, 1.0)
    fused = fuse(checked, [(Adapter("lora", "x", {Q0: delta}), 1.0)], "mask")
    with pytest.raises(InputRefused) as caught:
        measure(fused)
    assert caught.value.code == "adapter-empty"
