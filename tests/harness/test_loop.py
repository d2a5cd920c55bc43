"""The training loop: it learns, repeats bit for bit, and stops at the first NaN."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from exporter.errors import VerificationFailed
from harness.methods.base import Adaptation
from harness.methods.loop import _batches, _rate, reproducible, train
from harness.methods.options import Training

ROWS = np.random.default_rng(0).integers(0, 8, (5, 6))


class Bigram(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))
        self.scale = scale

    def forward(self, input_ids, labels):
        logits = self.table[input_ids[:, :-1]] * self.scale
        loss = nn.functional.cross_entropy(logits.reshape(-1, 8), labels[:, 1:].reshape(-1))
        return SimpleNamespace(loss=loss)


def losses(seed=0, **options):
    seen = []
    with reproducible(seed):
        model = Bigram(options.pop("scale", 1.0))
        method = Adaptation(model, dict(model.named_parameters()))
        got = train(method, ROWS, Training(seed=seed, **options), lambda *step: seen.append(step))
    assert seen == list(enumerate(got, start=1))
    return got


def test_the_loss_falls():
    got = losses(steps=60, lr=0.1)
    assert len(got) == 60
    assert np.mean(got[-5:]) < 0.8 * np.mean(got[:5])


def test_equal_seeds_give_equal_bits_and_leave_torch_as_it_was():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert losses(steps=8) == losses(steps=8)
    assert losses(steps=8) != losses(steps=8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_no_number_stops_the_run():
    with pytest.raises(VerificationFailed, match=r"training-failed[\s\S]*step 1: loss nan"):
        losses(steps=3, scale=float("nan"))


def test_every_window_comes_once_before_one_comes_again():
    options = Training(steps=5, batch=2)
    order = np.concatenate(list(_batches(ROWS, options)))
    assert len(order) == 10
    for half in (order[:5], order[5:]):
        assert {tuple(r) for r in half.tolist()} == {tuple(r) for r in ROWS.tolist()}


def test_the_rate_rises_then_falls_and_never_is_zero_while_stepping():
    rates = [_rate(t, Training(steps=10, warmup=0.3)) for t in range(10)]
    assert rates[:3] == [1 / 3, 2 / 3, 1.0]
    assert all(a > b > 0 for a, b in zip(rates[3:], rates[4:], strict=False))
    assert _rate(0, Training(steps=1)) == 1.0
