"""Each method's layer against plain float64 autograd of its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exporter.adapters.pool_groups import group_of
from exporter.adapters.pool_norm import normalise
from harness.methods import masked
from harness.methods.lors import CheapLora
from harness.methods.partial import PartialFunction, PartialLinear
from harness.methods.pool_layer import PoolFunction, PoolLinear, normalised
from harness.methods.sora import soft_threshold
from harness.methods.spp import SppFunction
from harness.methods.support import SupportFunction, SupportLinear, choose

EXACT = {"rtol": 1e-11, "atol": 1e-11}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(masked, "BLOCK_ELEMENTS", 50)  # several blocks, the last one shorter


def make(*shape, grad=True, seed=0):
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_(grad)


def case(out=16, width=11):
    x, weight = make(2, 5, width), make(out, width, grad=False)
    kept = make(out, width, grad=False, seed=3) > 0
    return x, weight * kept, kept


def same(ours, theirs, inputs, push):
    torch.testing.assert_close(ours, theirs, **EXACT)
    got = torch.autograd.grad(ours, inputs, push, retain_graph=True)
    torch.testing.assert_close(got, torch.autograd.grad(theirs, inputs, push), **EXACT)


def test_lors_is_exact_for_the_input_and_leaves_the_mask_out_for_the_factors():
    x, weight, kept = case()
    a, b = make(3, 11), make(16, 3)
    ours = CheapLora.apply(x, weight, kept, a, b, 1.5)
    theirs = x @ ((weight + 1.5 * b @ a) * kept).T
    torch.testing.assert_close(ours, theirs, **EXACT)
    push = make(2, 5, 16, grad=False)
    dx, da, db = torch.autograd.grad(ours, (x, a, b), push)
    torch.testing.assert_close(dx, torch.autograd.grad(theirs, x, push)[0], **EXACT)
    dense = x.detach() @ (weight + 1.5 * b @ a).T
    want = torch.autograd.grad(dense, (a, b), push)
    torch.testing.assert_close((da, db), want, **EXACT)


def test_spp_is_a_factor_of_rows_and_columns():
    x, weight, kept = case(out=32)
    a, c = make(16, 11), make(32, 1)
    factor = 1 + 0.7 * a.repeat_interleave(2, dim=0) * c
    ours = SppFunction.apply(x, weight, a, c, 0.7)
    same(ours, x @ (weight * factor).T, (x, a, c), make(2, 5, 32, grad=False))
    assert not (weight * factor)[~kept].any()


@pytest.mark.parametrize("kind", ["cols", "rows"])
def test_s2ft_slices_equal_a_masked_slice_of_the_whole_gradient(kind):
    x, weight, kept = case()
    index = torch.tensor([1, 4, 9])
    axis = 1 if kind == "cols" else 0
    own = kept.index_select(axis, index)
    delta = (make(16, 3) if kind == "cols" else make(3, 11)).detach() * own
    delta.requires_grad_()
    whole = weight.index_add(axis, index, delta * own)
    ours = PartialFunction.apply(x, whole.detach(), delta, index, own, kind)
    same(ours, x @ whole.T, (x, delta), make(2, 5, 16, grad=False))


def test_s2ft_keeps_k_columns_of_the_input_for_the_backward():
    linear = nn.Linear(64, 8, bias=False).requires_grad_(False)
    layer = PartialLinear(linear, torch.tensor([3, 7]), "cols", None)
    x = torch.randn(10, 64)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(tuple(t.shape)) or t, lambda t: t
    ):
        layer(x)
    assert (10, 2) in saved
    assert (10, 64) not in saved


@pytest.mark.parametrize("kind", ["cols", "rows"])
def test_s2ft_refresh_does_not_drift(kind):
    linear = nn.Linear(8, 6, bias=True).requires_grad_(False)
    before = linear.weight.clone()
    layer = PartialLinear(linear, torch.tensor([0, 5]), kind, None)
    for scale in (1e3, -7.7, 0.0):
        layer.delta.data.fill_(scale)
        layer.refresh()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("sizes", [(4, 3), (5, 2), (1, 1), (16, 11)])
@pytest.mark.parametrize("mode", ["exact", "ste"])
def test_pooling_under_the_mask(sizes, mode):
    x, weight, kept = case()
    table = make(*sizes)
    a, b = (
        torch.from_numpy(group_of(d, g, "balanced")) for d, g in zip((16, 11), sizes, strict=True)
    )
    dense = table[a][:, b]
    ours = PoolFunction.apply(x, weight, kept, table, a, b, mode == "exact")
    theirs = x @ ((weight + dense) * kept).T
    torch.testing.assert_close(ours, theirs, **EXACT)
    push = make(2, 5, 16, grad=False)
    dx, dt = torch.autograd.grad(ours, (x, table), push)
    torch.testing.assert_close(dx, torch.autograd.grad(theirs, x, push)[0], **EXACT)
    judged = theirs if mode == "exact" else x @ (weight + dense).T
    x2 = x.detach()
    judged = (
        x2 @ ((weight + table[a][:, b]) * kept).T
        if mode == "exact"
        else x2 @ (weight + table[a][:, b]).T
    )
    torch.testing.assert_close(dt, torch.autograd.grad(judged, table, push)[0], **EXACT)


@pytest.mark.parametrize("grouping", ["balanced", "strided", "ceil"])
@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize(("d", "g"), [((12, 13), (4, 4)), ((5, 5), (5, 1)), ((13, 12), (1, 6))])
def test_pooling_apart_is_pool_then_g_then_expand(grouping, pool, d, g):
    linear = nn.Linear(d[1], d[0], dtype=torch.float32)
    layer = PoolLinear(
        linear, torch.ones(d, dtype=torch.bool), g, pool=pool, grouping=grouping, scale=0.5,
        norm="none", tau=1.0, mode="none", generator=torch.Generator(),
    )  # fmt: skip
    with torch.no_grad():
        layer.g.copy_(torch.randn(g))
    x = torch.randn(3, d[1])
    a, b = group_of(d[0], g[0], grouping), group_of(d[1], g[1], grouping)
    pooled = np.stack([x.numpy()[:, b == k].sum(1) for k in range(g[1])], 1)
    if pool == "mean":
        pooled /= np.bincount(b)[None]
    want = linear(x).detach().numpy() + 0.5 * (pooled @ layer.g.detach().numpy().T)[:, a]
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(x) + x @ layer.delta().T, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "wd", "maxnorm", "spectral", "fro", "row"])
def test_normalisers_are_those_of_the_exporter(norm):
    g, gamma = make(4, 3), make(1 if norm == "fro" else 4)
    ours = normalised(g, norm, 0.8, 1e-12, gamma)
    want = normalise(g.detach().numpy(), norm, 0.8, 1e-12, gamma.detach().numpy())
    np.testing.assert_allclose(ours.detach().numpy(), want, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda t: normalised(t, norm, 0.8, 1e-12, gamma.detach()), g)


def test_what_the_mask_takes_from_a_pooled_delta_has_the_closed_form():
    """`s^2 sum_ab rho_ab |O_a| / |I_b| G_ab^2` with mean pooling."""
    linear = nn.Linear(11, 13)
    kept = torch.rand(13, 11) > 0.5
    layer = PoolLinear(
        linear, kept, (5, 4), pool="mean", grouping="balanced", scale=1.7, norm="none", tau=1.0,
        mode="exact", generator=torch.Generator(),
    )  # fmt: skip
    with torch.no_grad():
        layer.g.copy_(torch.randn(5, 4))
    a, b = group_of(13, 5, "balanced"), group_of(11, 4, "balanced")
    want = 0.0
    for i in range(5):
        for j in range(4):
            block = ~kept.numpy()[np.ix_(a == i, b == j)]
            rho = block.mean()
            sizes = (a == i).sum() / (b == j).sum()
            want += 1.7**2 * rho * sizes * float(layer.g.detach()[i, j]) ** 2
    got = layer.delta().masked_fill(kept, 0.0).square().sum()
    assert float(got) == pytest.approx(want, rel=1e-5)


def test_values_on_the_support_get_the_gradient_at_their_positions():
    x, weight, kept = case()
    index = choose(weight, kept, "random", 20, torch.Generator().manual_seed(0))
    assert len(index) == 20 and bool(kept.reshape(-1)[index].all())
    values = make(20)
    whole = weight.reshape(-1).index_add(0, index, values).reshape(16, 11)
    ours = SupportFunction.apply(x, whole.detach(), values, index)
    same(ours, x @ whole.T, (x, values), make(2, 5, 16, grad=False))


def test_the_oracle_takes_all_or_the_largest():
    weight = torch.tensor([[3.0, 0.0, -5.0], [1.0, 2.0, 0.0]])
    kept = weight != 0
    draw = torch.Generator()
    assert choose(weight, kept, "all", 2, draw).tolist() == [0, 2, 3, 4]
    assert choose(weight, kept, "magnitude", 2, draw).tolist() == [0, 2]
    layer = SupportLinear(nn.Linear(3, 2, bias=False), torch.tensor([0, 4]))
    layer.values.data.fill_(1.0)
    layer.refresh()
    assert torch.equal(layer.weight.reshape(-1)[[0, 4]], layer.start + 1.0)


def test_soft_threshold_is_the_proximal_step_and_the_literal_one_cuts_twice_as_far():
    gate = torch.tensor([0.05, -0.15, 0.25, -1.0])
    near = {"rtol": 0, "atol": 1e-7}
    torch.testing.assert_close(
        soft_threshold(gate, 0.1, literal=False), torch.tensor([0.0, -0.05, 0.15, -0.9]), **near
    )
    torch.testing.assert_close(
        soft_threshold(gate, 0.1, literal=True), torch.tensor([0.0, 0.0, 0.15, -0.9]), **near
    )
