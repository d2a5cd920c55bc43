"""Products with a weight formed under its mask, on every instruction set, against float64."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from backends.packed.kernels.library import Isa, Library
from backends.packed.kernels.masked import MaskedProducts, Way, available
from exporter.errors import EngineUnfit
from harness.methods import masked
from harness.methods.masked import MaskedLora

SHAPES = [  # out, in, tokens, rank: one of each; edges of tiles, panels and chunks; several of each
    (1, 1, 1, 1),
    (13, 11, 5, 3),
    (14, 32, 32, 16),
    (126, 256, 14, 17),
    (130, 300, 77, 33),
    (29, 513, 1030, 40),
    (700, 64, 256, 8),
]


def tensors(out: int, width: int, tokens: int, rank: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(out * width + tokens)
    kept = torch.rand(out, width, generator=g) > 0.6
    sizes = ((tokens, width), (tokens, out), (out, width), (rank, width), (out, rank))
    x, dy, weight, a, b = (torch.randn(s, generator=g) for s in sizes)
    return x, dy, weight, kept, a, b


def reference(x, dy, weight, kept, a, b, scale):
    """y, dx, dA and dB in float64."""
    x, dy, weight, a, b = (t.double() for t in (x, dy, weight, a, b))
    formed, g = kept * (weight + scale * b @ a), kept * (dy.T @ x)
    return x @ formed.T, dy @ formed, scale * b.T @ g, scale * g @ a.T


def products(fast: MaskedProducts, x, dy, *formed):
    forward = fast.forward(x, *formed)
    return forward, fast.input_gradient(dy, *formed), *fast.factor_gradients(x, dy, *formed)


@pytest.fixture(autouse=True)
def own_threads(kernels: Library) -> Iterator[None]:
    """What comes after finds the library's own threads."""
    yield
    kernels.share_threads(0)


EACH_WAY = pytest.mark.parametrize("way", [Way.WHOLE, Way.LISTS], ids=str)


@EACH_WAY
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path(each_build: Library, shape: tuple[int, ...], way: Way) -> None:
    x, dy, *formed = tensors(*shape)
    wanted = reference(x, dy, *formed, 1.7)
    for isa in each_build.isas():
        found = products(MaskedProducts(each_build, isa, way), x, dy, *formed, 1.7)
        for got, want in zip(found, wanted, strict=True):
            assert got.shape == want.shape
            assert (got - want).norm() <= 2e-6 * want.norm(), isa.label


@EACH_WAY
def test_what_is_not_kept_is_not_read_as_a_number(kernels: Library, way: Way) -> None:
    x, dy, weight, kept, a, b = tensors(30, 70, 9, 4)
    wild = torch.where(kept, weight, torch.nan)
    fast = MaskedProducts(kernels, way=way)
    for got, want in zip(
        products(fast, x, dy, wild, kept, a, b, 0.5),
        products(fast, x, dy, weight, kept, a, b, 0.5),
        strict=True,
    ):
        assert torch.equal(got, want)


@EACH_WAY
def test_a_row_or_a_column_without_a_weight(kernels: Library, way: Way) -> None:
    x, dy, weight, kept, a, b = tensors(30, 70, 9, 4)
    kept[3], kept[:, 5] = False, False
    y, dx, da, db = products(MaskedProducts(kernels, way=way), x, dy, weight, kept, a, b, 0.5)
    assert not y[:, 3].any() and not dx[:, 5].any()
    assert not db[3].any() and not da[:, 5].any()


@EACH_WAY
def test_the_same_bits_for_any_number_of_threads(kernels: Library, way: Way) -> None:
    x, dy, *formed = tensors(300, 290, 70, 5)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(products(MaskedProducts(kernels, way=way), x, dy, *formed, 2.0))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize(("zeros", "way"), [(0.3, Way.WHOLE), (0.9, Way.LISTS)])
def test_the_mask_decides_which_way(kernels: Library, zeros: float, way: Way) -> None:
    x, dy, weight, kept, *factors = tensors(300, 290, 70, 5)
    kept = torch.rand(kept.shape, generator=torch.Generator().manual_seed(0)) >= zeros
    for isa in [isa for isa in kernels.isas() if isa >= Isa.AVX2]:
        chosen, named = (MaskedProducts(kernels, isa, w) for w in (Way.BY_MASK, way))
        found = products(chosen, x, dy, weight, kept, *factors, 2.0)
        wanted = products(named, x, dy, weight, kept, *factors, 2.0)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), isa.label


def test_a_forked_process_gets_the_same(kernels: Library) -> None:
    """Threads of OpenMP do not live on in it, whatever its OpenMP believes."""
    x, dy, *formed = tensors(300, 290, 70, 5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    fast = MaskedProducts(kernels)
    wanted = products(fast, x, dy, *formed, 2.0)
    child = os.fork()
    if child == 0:
        found = products(fast, x, dy, *formed, 2.0)
        same = all(bytes(a.numpy()) == bytes(b.numpy()) for a, b in zip(found, wanted, strict=True))
        os._exit(0 if same else 3)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@EACH_WAY
def test_memory_that_is_not_in_order_is_copied(kernels: Library, way: Way) -> None:
    x, dy, weight, kept, a, b = tensors(20, 30, 8, 4)
    turned = [t.t().contiguous().t() for t in (x, dy, weight, kept, a, b)]
    assert not any(t.is_contiguous() for t in turned)
    fast = MaskedProducts(kernels, way=way)
    for got, want in zip(
        products(fast, *turned, 1.0), products(fast, x, dy, weight, kept, a, b, 1.0), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("lead", [(7,), (2, 5)])
def test_training_takes_them_and_agrees_with_torch(monkeypatch, kernels: Library, lead) -> None:
    """The same layer with and without them; that they run is counted."""
    fast, calls = MaskedProducts(kernels), []
    monkeypatch.setattr(masked, "available", lambda: calls.append(1) or fast)
    _, _, weight, kept, a, b = tensors(40, 24, 10, 3)
    x = torch.randn(*lead, 24).requires_grad_()
    factors = [t.requires_grad_() for t in (a, b)]

    def run() -> tuple[torch.Tensor, ...]:
        y = MaskedLora.apply(x, weight, kept, *factors, 1.3)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, *factors))

    ours = run()
    assert len(calls) == 3
    monkeypatch.setattr(masked, "available", lambda: None)
    torch.testing.assert_close(ours, run(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(kernels: Library, kind: torch.dtype) -> None:
    fast = MaskedProducts(kernels)
    assert fast.takes(torch.ones(2)) and not fast.takes(torch.ones(2), torch.ones(2, dtype=kind))
    assert not fast.takes(torch.ones(0, 3))


def test_slow_kernels_are_not_taken(monkeypatch, kernels: Library) -> None:
    available.cache_clear()
    try:
        monkeypatch.setenv("SPARSE_EXPORT_ISA", "portable")
        assert available() is None
        available.cache_clear()
        monkeypatch.setenv("SPARSE_EXPORT_ISA", "abacus")
        with pytest.raises(EngineUnfit, match="abacus"):
            available()
    finally:
        available.cache_clear()


@pytest.mark.parametrize("place", range(6))
def test_sizes_that_do_not_fit_are_refused(kernels: Library, place: int) -> None:
    """The kernels read as much as the weight's shape says."""
    given = list(tensors(6, 5, 4, 3))
    given[place] = torch.ones(2, 2, dtype=given[place].dtype)
    x, dy, *formed = given
    fast = MaskedProducts(kernels)
    with pytest.raises(ValueError, match="expected"):
        fast.forward(x, *formed, 1.0)
        fast.factor_gradients(x, dy, *formed, 1.0)


def test_the_library_refuses_what_it_cannot_use(kernels: Library) -> None:
    x, dy, *formed = tensors(4, 4, 2, 1)
    fast = MaskedProducts(kernels)
    with pytest.raises(ValueError, match="code 1"):
        fast.forward(x[:0], *formed, 1.0)
    assert np.isfinite(fast.forward(x, *formed, 1.0).numpy()).all()
