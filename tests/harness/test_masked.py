"""The masked linear against plain autograd in float64, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.methods.masked import MaskedLora, MaskedLoraLinear


def tensors(out=13, width=11, rank=3, lead=(2, 5), dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    kept = torch.rand(out, width, generator=g) > 0.6
    made = [torch.randn(s, generator=g, dtype=dtype) for s in ((*lead, width), (rank, width))]
    x, a = (t.requires_grad_() for t in made)
    b = torch.randn(out, rank, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(out, width, generator=g, dtype=dtype)
    return x, weight, kept, a, b


def plain(x, weight, kept, a, b, scale):
    return x @ ((weight + scale * b @ a) * kept).T


@pytest.mark.parametrize("block", [1, 30, 1 << 20])  # one row, some rows, all rows
def test_output_and_gradients_equal_autograd(monkeypatch, block):
    monkeypatch.setattr("harness.methods.masked.BLOCK_ELEMENTS", block)
    x, weight, kept, a, b = tensors()
    ours = MaskedLora.apply(x, weight, kept, a, b, 1.7)
    theirs = plain(x, weight, kept, a, b, 1.7)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    push = torch.randn_like(theirs)
    got = torch.autograd.grad(ours, (x, a, b), push)
    want = torch.autograd.grad(theirs, (x, a, b), push)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_pass_finite_differences():
    x, weight, kept, a, b = tensors(out=4, width=5, rank=2, lead=(3,))
    assert torch.autograd.gradcheck(
        lambda *t: MaskedLora.apply(t[0], weight, kept, t[1], t[2], 0.5), (x, a, b)
    )


def test_an_input_without_gradient_is_allowed():
    x, weight, kept, a, b = tensors()
    MaskedLora.apply(x.detach(), weight, kept, a, b, 1.0).sum().backward()
    reference = torch.autograd.grad(plain(x, weight, kept, a, b, 1.0).sum(), (a, b))
    torch.testing.assert_close((a.grad, b.grad), reference)


@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_starts_as_the_one_it_replaces(bias):
    linear = nn.Linear(11, 13, bias=bias)
    kept = torch.rand(13, 11) > 0.5
    with torch.no_grad():
        linear.weight.mul_(kept)
    ours = MaskedLoraLinear(linear, kept, 3, 2.0, torch.Generator().manual_seed(0))
    x = torch.randn(2, 4, 11)
    torch.testing.assert_close(ours(x), linear(x))
    assert ours.lora_a.abs().max() <= 11**-0.5
    assert {n for n, p in ours.named_parameters() if p.requires_grad} >= {"lora_a", "lora_b"}
