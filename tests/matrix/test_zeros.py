"""Every family over every pattern: zeros of the result contain those of the base, bit for bit.

Families that are zero outside the mask merge without being asked how; the others are refused
until a policy is named, and each policy keeps, moves or gives up zeros as it says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.adapters.base import Adapter
from exporter.errors import UsageError
from exporter.merge.base import MergePolicyNeeded
from exporter.merge.fuse import fuse
from exporter.merge.workbench import Workbench
from exporter.model import FusedModel
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from tests.matrix.families import ADAPTED, BRANCHES, DENSE, EXACT, FAMILIES, World, make_world
from tests.sparsity.patterns import PATTERNS

Cases = Callable[[str, str], tuple[World, Adapter]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """(family, pattern) -> base and adapter, each made once."""
    place = tmp_path_factory.mktemp("matrix")
    worlds: dict[str, World] = {}
    made: dict[tuple[str, str], Adapter] = {}

    def get(family: str, pattern: str) -> tuple[World, Adapter]:
        number = list(PATTERNS).index(pattern)
        if pattern not in worlds:
            worlds[pattern] = make_world(place / f"base{number}", pattern)
        world = worlds[pattern]
        if (family, pattern) not in made:
            folder = place / f"{list(FAMILIES).index(family)} on {number}"
            FAMILIES[family](folder, world, np.random.default_rng(7))
            made[family, pattern] = world.load(folder)
        return world, made[family, pattern]

    return get


def rows(fused: FusedModel, module: str) -> Any:
    tensor = fused.tensors[f"{module}.weight"]
    return tensor.rows(0, tensor.shape[0])


def assert_zeros_contained(world: World, fused: FusedModel, adapter: Adapter) -> None:
    """Every zero of every linear is +0.0 after the merge, and each adapted weight changed."""
    for linear in world.checked.spec.linears():
        before = world.arrays[linear.weight]
        after = rows(fused, linear.module)
        assert not after[before == 0].view(np.uint32).any(), linear.module
        assert (after != before).any() == (linear.module in adapter.deltas), linear.module
        assert fused.mask(linear.weight) == Mask.from_bool(before != 0)


def label(kept: Any) -> str:
    return mask_pattern("m", Mask.from_bool(kept)).pattern.label


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", EXACT)
def test_exact_families_keep_every_zero(family: str, pattern: str, case: Cases) -> None:
    world, adapter = case(family, pattern)
    fused = fuse(world.checked, [(adapter, 1.0)])
    assert fused.record["policies_used"] == ["exact"]
    assert not fused.densified
    assert_zeros_contained(world, fused, adapter)
    for module in adapter.deltas:
        assert label(rows(fused, module) != 0) == label(world.kept(module))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_exact_families_together_keep_every_zero(pattern: str, case: Cases) -> None:
    """Several adapters in one merge, each with its weight."""
    found = [case(family, pattern) for family in EXACT]
    world = found[0][0]
    fused = fuse(world.checked, [(adapter, 0.5) for _, adapter in found])
    assert_zeros_contained(world, fused, found[0][1])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_dense_families_need_a_policy(family: str, pattern: str, case: Cases) -> None:
    world, adapter = case(family, pattern)
    for policy in (None, "exact"):
        with pytest.raises(MergePolicyNeeded) as caught:
            fuse(world.checked, [(adapter, 1.0)], policy)
        shares = {s.module: s for s in caught.value.shares}
        assert set(shares) == set(adapter.deltas)
        lossy = [s for s in shares.values() if s.outside > 0 and s.new_nonzeros > 0]
        assert lossy
        assert all(s.density == pytest.approx(world.kept(m).mean()) for m, s in shares.items())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_one_dense_family_beside_an_exact_one_needs_it_too(
    family: str, pattern: str, case: Cases
) -> None:
    world, adapter = case(family, pattern)
    with pytest.raises(MergePolicyNeeded):
        fuse(world.checked, [(case("SPP", pattern)[1], 1.0), (adapter, 1.0)])


def bench_for(world: World, folder: Path) -> Workbench:
    """Second moments of random inputs for every adapted module."""
    rng = np.random.default_rng(3)
    bench = Workbench(folder)
    for module, (_, width) in ADAPTED.items():
        x = rng.standard_normal((64, width)).astype(np.float32)
        bench.keep_gram([module], x.T @ x)
    return bench


@pytest.mark.parametrize("policy", ["mask", "refit"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_policies_that_keep_the_mask(
    family: str, pattern: str, policy: str, case: Cases, tmp_path: Path
) -> None:
    world, adapter = case(family, pattern)
    bench = bench_for(world, tmp_path) if policy == "refit" else None
    fused = fuse(world.checked, [(adapter, 1.0)], policy, bench=bench)
    assert_zeros_contained(world, fused, adapter)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_reprune_moves_zeros_within_the_pattern(family: str, pattern: str, case: Cases) -> None:
    world, adapter = case(family, pattern)
    fused = fuse(world.checked, [(adapter, 1.0)], "reprune")
    for module in adapter.deltas:
        before, after = world.kept(module), rows(fused, module)
        mask = fused.mask(f"{module}.weight")
        assert mask is not None
        assert not after[~mask.rows()].view(np.uint32).any()
        assert mask.kept == before.sum()
        assert label(mask.rows()) == label(before)
        if pattern in ("rows", "columns"):
            assert mask == Mask.from_bool(before)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_separate_leaves_the_weights_alone(family: str, pattern: str, case: Cases) -> None:
    world, adapter = case(family, pattern)
    if not all(hasattr(d, "low_rank") and d.low_rank() for d in adapter.deltas.values()):
        assert family not in BRANCHES
        with pytest.raises(UsageError) as caught:
            fuse(world.checked, [(adapter, 1.0)], "separate")
        assert caught.value.code == "usage"
        return
    fused = fuse(world.checked, [(adapter, 1.0)], "separate")
    assert set(fused.branches) == set(adapter.deltas)
    for linear in world.checked.spec.linears():
        np.testing.assert_array_equal(rows(fused, linear.module), world.arrays[linear.weight])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", DENSE)
def test_densify_says_which_modules_it_fills(family: str, pattern: str, case: Cases) -> None:
    world, adapter = case(family, pattern)
    fused = fuse(world.checked, [(adapter, 1.0)], "densify")
    filled = {m for m in adapter.deltas if (rows(fused, m)[~world.kept(m)] != 0).any()}
    assert filled
    assert filled == fused.densified
    for linear in world.checked.spec.linears():
        if linear.module not in filled:
            assert fused.mask(linear.weight) == Mask.from_bool(world.kept(linear.module))


def test_no_family_is_left_out() -> None:
    """Every family that the loader knows stands in the table."""
    from exporter.adapters.load import FAMILIES as KNOWN

    # An S2FT in another order (tests/adapters/test_s2ft.py), and one that touches no linear.
    elsewhere = {"s2ft-permuted", "ln_tuning"}
    table = {name.lower().split()[0].rstrip(",") for name in FAMILIES}
    assert {f.name for f in KNOWN} - elsewhere <= table
