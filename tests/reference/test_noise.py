"""The spread of a model's logits under disturbed rounding: small, or large where it cancels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from backends.reference.noise import RUNS, UNIT, spread
from backends.reference.session import open_reference
from tests.tiny import KINDS, save_tiny
from tests.verify.fakes import memory_model

TOKENS = tuple(int(t) for t in np.random.default_rng(3).integers(0, 259, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_keeps_its_digits(kind: str, tmp_path: Path) -> None:
    session = open_reference(memory_model(save_tiny(kind, tmp_path / "m", sparsity=0.5)))
    before = session.prefill(TOKENS)
    found = session.spread(TOKENS)
    assert found.dtype == np.float64 and found.shape == (len(TOKENS),)
    assert (found > 1e-8).all() and (found < 1e-5).all()
    assert (session.spread(TOKENS) == found).all()  # the same draws each time
    assert (session.prefill(TOKENS) == before).all()  # and nothing stays behind
    session.close()


class Cancels(nn.Module):
    """Two equal products of size `big`, one taken from the other: exact until disturbed."""

    def __init__(self, big: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last = nn.Identity()
        for layer in (self.up, self.down):
            layer.weight.data = big * torch.eye(4)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        x = self.embed(input_ids)
        return SimpleNamespace(logits=self.last(x + (self.up(x) - self.down(x))))


@pytest.mark.parametrize("big", [1.0, 1e3, 1e5])
def test_cancellation_shows_in_proportion(big: float) -> None:
    torch.manual_seed(0)
    net = Cancels(big).requires_grad_(False)
    found = spread(net, torch.arange(8)[None], set())
    # Each product is moved by at most one unit in its last place, and most draws by half of it.
    assert (found <= 4 * (big + 1) * UNIT).all() and found.max() > 0.5 * big * UNIT
    assert RUNS >= 8


def test_layers_are_disturbed_beside_weights() -> None:
    net = Cancels(0.0).requires_grad_(False)
    plain = spread(net, torch.arange(8)[None], set())
    more = spread(net, torch.arange(8)[None], {net.embed, net.up})  # these hold weights: once each
    assert (plain == more).all()
    disturbed = spread(net, torch.arange(8)[None], {net.last})  # this one holds none
    assert (disturbed != plain).any() and disturbed.max() <= 3 * UNIT
