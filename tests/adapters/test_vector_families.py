"""AdaLoRA, LoHa, LoKr, (IA)^3, VeRA and SHiRA: deltas, blocks of rows, and sparse bases."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from exporter.adapters.base import Adapter
from exporter.adapters.ia3 import write_ia3
from exporter.adapters.lokr import kronecker_shapes
from exporter.errors import UsageError
from exporter.merge.fuse import fuse
from exporter.model import CheckedModel
from tests.adapters import vectors
from tests.adapters.forge import read
from tests.merge.world import make_model, shape_of, slow_merge, tensors_of

MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.mlp.down_proj",
    "lm_head",
)
WIDE: dict[str, Any] = {"intermediate_size": 150, "vocab_size": 200}  # more than one tile of rows
VARIANTS = vectors.FAMILIES | {
    "lokr both": partial(vectors.lokr, rank=1, decompose_both=True),
    "lokr whole": partial(vectors.lokr, rank=200),
    "lokr factor": partial(vectors.lokr, decompose_factor=4),
    "lokr one row": partial(vectors.lokr, rank=2, decompose_factor=1),
}
LOSSY = ("adalora", "loha", "lokr", "vera", "shira")
BRANCHES = ("adalora", "vera")


def shapes_of(checked: CheckedModel) -> dict[str, tuple[int, int]]:
    return {m: shape_of(cast(Any, checked.spec), m) for m in MODULES}


def bound(adapter: Adapter, module: str, weight: Any) -> Any:
    """The delta, on `weight` if it depends on one."""
    delta = cast(Any, adapter.deltas[module])

    def rows(r0: int, r1: int) -> Any:
        return weight[r0:r1].copy()

    return delta.bind(rows, None) if hasattr(delta, "bind") else delta


@pytest.fixture(scope="module")
def base() -> CheckedModel:
    return make_model(**WIDE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_deltas(tmp_path: Path, base: CheckedModel, variant: str):
    """Against float64, in any blocks of rows, from a folder that we wrote."""
    slow = VARIANTS[variant](tmp_path, shapes_of(base))
    adapter = read(tmp_path, cast(Any, base.spec))
    assert adapter.family == variant.split()[0]
    assert adapter.deltas.keys() == slow.keys()
    for module, reference in slow.items():
        weight = tensors_of(base)[f"{module}.weight"]
        delta = bound(adapter, module, weight)
        out = delta.shape[0]
        whole = delta.rows(0, out)
        want = reference(weight.astype(np.float64))
        assert np.abs(whole - want).max() <= 1e-6 * np.abs(want).max(), module
        for step in (1, 7, 64, 100):
            parts = [delta.rows(r, min(r + step, out)) for r in range(0, out, step)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("family", LOSSY)
def test_lossy_on_a_sparse_base(tmp_path: Path, base: CheckedModel, family: str):
    """Refused without a policy; each policy does what its name says."""
    slow = vectors.FAMILIES[family](tmp_path, shapes_of(base))
    adapter = read(tmp_path, cast(Any, base.spec))
    with pytest.raises(UsageError) as caught:
        fuse(base, [(adapter, 1.0)])
    assert caught.value.code == "merge-policy-needed"
    for policy in ("mask", "densify"):
        assert_merged(base, adapter, slow, policy)


@pytest.mark.parametrize("family", vectors.FAMILIES)
def test_separate(tmp_path: Path, base: CheckedModel, family: str):
    slow = vectors.FAMILIES[family](tmp_path, shapes_of(base))
    adapter = read(tmp_path, cast(Any, base.spec))
    if family not in BRANCHES:
        with pytest.raises(UsageError):
            fuse(base, [(adapter, 1.0)], "separate")
        return
    fused = fuse(base, [(adapter, 1.0)], "separate")
    for module, branch in fused.branches.items():
        product = branch.scale * (branch.b.astype(np.float64) @ branch.a.astype(np.float64))
        want = slow[module](None)
        assert np.abs(product - want).max() <= 1e-6 * np.abs(want).max()
    assert set(fused.branches) == slow.keys() - {"lm_head"}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_ia3_is_exact_under_a_mask(tmp_path: Path, sparsity: float):
    base = make_model(sparsity, **WIDE)
    slow = vectors.ia3(tmp_path, shapes_of(base))
    adapter = read(tmp_path, cast(Any, base.spec))
    assert adapter.masked
    assert_merged(base, adapter, slow, None)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_oracle_is_exact_under_its_mask(tmp_path: Path, sparsity: float):
    """Values on the whole support."""
    base = make_model(sparsity, **WIDE)
    masks = {m: tensors_of(base)[f"{m}.weight"] != 0 for m in MODULES}
    slow = vectors.shira(tmp_path, shapes_of(base), masks)
    adapter = read(tmp_path, cast(Any, base.spec))
    assert adapter.facts["values"] == sum(int(m.sum()) for m in masks.values())
    assert_merged(base, adapter, slow, None)


def assert_merged(base: CheckedModel, adapter: Adapter, slow: Any, policy: str | None) -> None:
    fused = fuse(base, [(adapter, 1.0)], policy)
    for module, reference in slow.items():
        weight = tensors_of(base)[f"{module}.weight"]
        out = weight.shape[0]
        found = fused.tensors[f"{module}.weight"].rows(0, out)
        delta = reference(weight.astype(np.float64))
        kept_all = module == "lm_head" or policy == "densify"
        want = weight + delta if kept_all else slow_merge(weight, delta, policy or "exact")
        assert np.abs(found - want).max() <= 1e-6 * (np.abs(weight) + np.abs(delta)).max()
        if not kept_all:
            zeros = found[weight == 0]
            assert not zeros.any() and not np.signbit(zeros).any()


def test_ia3_is_one_product_for_factors_near_one(tmp_path: Path):
    """No bit is lost by going through a delta (Sterbenz)."""
    base = make_model(0.5, **WIDE)
    module, (out, _) = MODULES[1], shapes_of(base)[MODULES[1]]
    factors = np.random.default_rng(1).uniform(0.5, 2.0, out).astype(np.float32)
    write_ia3(tmp_path, {module: factors}, {})
    fused = fuse(base, [(read(tmp_path, cast(Any, base.spec)), 1.0)])
    weight = tensors_of(base)[f"{module}.weight"]
    found = fused.tensors[f"{module}.weight"].rows(0, out)
    np.testing.assert_array_equal(found, weight * factors[:, None])


def test_ia3_scales_biases_by_its_weight(tmp_path: Path):
    """`b + w * (l . b - b)`, also where another adapter adds to the bias."""
    base = make_model(0.5, attention_bias=True, mlp_bias=True)
    shapes = {m: s for m, s in shapes_of(base).items() if m != "lm_head"}
    vectors.ia3(tmp_path, shapes)
    adapter = read(tmp_path, cast(Any, base.spec))
    scaled = {r.tensor: r for r in adapter.replacements}
    assert list(scaled) == ["model.layers.0.mlp.up_proj.bias"]
    for name, item in scaled.items():
        bias, factors = tensors_of(base)[name], item.rows(0, *item.shape)
        for weight in (1.0, 0.25):
            found = fuse(base, [(adapter, weight)]).tensors[name].rows(0, *item.shape)
            want = bias.astype(np.float64) * (1 + weight * (factors.astype(np.float64) - 1))
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())
        twice = fuse(base, [(adapter, 0.5), (adapter, 0.5)]).tensors[name].rows(0, *item.shape)
        np.testing.assert_allclose(twice, bias * factors, rtol=0, atol=1e-6)


def test_kronecker_shapes_multiply_to_the_weight():
    for shape in [(11008, 4096), (960, 2560), (127, 64)]:
        for factor in (-1, 1, 4, 16, 5000):
            left, right = kronecker_shapes(shape, factor)
            assert (left[0] * right[0], left[1] * right[1]) == shape
