"""S2FT: whole heads and channels of the weights train, by partial back-propagation.

Yang et al. 2024 (NeurIPS, arXiv 2412.06289). Heads of `o` (columns) and `v` (rows), channels of
`down` (columns), `up` and `gate` (rows). The public code permutes the model so that what trains
is contiguous; here indices do, so nothing moves, grouped heads need no care, and biases stay.
`v` is selected by key/value heads, `o` by query heads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from exporter.adapters.s2ft import write_s2ft
from exporter.arch.model_spec import Linear
from exporter.errors import UsageError
from harness.methods.base import Adaptation, Base, as_numpy, kept_of, put, require_zeros
from harness.methods.partial import PartialLinear
from harness.methods.s2ft_scores import COLS, channel_scores
from harness.methods.s2ft_select import (
    Allocation,
    Scores,
    Strategy,
    combine,
    counts,
    draw_joint,
    pick,
    widen,
)
from harness.text import Tokens

HEADS = ("v", "o")  # roles that are chosen by whole heads


@dataclass(frozen=True)
class S2ftSettings:
    """Shares of heads (`v`, `o`) and channels (`up`, `gate`, `down`) that train.

    `allocation` "joint" is the public code's draw over all layers at once; its settings for
    LLaMA-2-7B are o=0.052, down=0.02. `shared`: one choice of channels for up, gate and down,
    as the paper's rebuttal has it. `masked`: V stays in the base's mask; without it whole rows
    and columns become dense.
    """

    v: float = 0.0
    o: float = 0.05
    up: float = 0.0
    gate: float = 0.0
    down: float = 0.05
    strategy: Strategy = "R"
    largest: bool = True
    allocation: Allocation = "uniform"
    shared: bool = False
    masked: bool = True
    samples: int = 16  # windows that A, S and G are measured on


class S2ft(Adaptation):
    """S2FT on the chosen slices.

    Raises:
        UsageError: `usage` for settings that choose nothing.
    """

    def __init__(self, base: Base, settings: S2ftSettings, rows: Tokens) -> None:
        self._base, self._settings = base, settings
        chosen = select(base, settings, rows)
        if not chosen:
            raise UsageError(
                "usage", "S2FT with no head and no channel", expected="shares that reach one"
            )
        self.layers: dict[str, PartialLinear] = {}
        self._kept: dict[str, torch.Tensor] = {}
        for linear in base.checked.spec.linears():
            if linear.module not in chosen:
                continue
            old = cast(nn.Linear, base.model.get_submodule(linear.module))
            sparse = base.checked.patterns[linear.module].pattern.kind != "dense"
            kept = kept_of(base, linear) if sparse and settings.masked else None
            index = torch.tensor(chosen[linear.module], dtype=torch.int64)
            new = PartialLinear(old, index, "cols" if linear.role in COLS else "rows", kept)
            put(base.model, linear.module, new)
            self.layers[linear.module] = new
            if kept is not None:
                self._kept[linear.module] = kept
        super().__init__(base.model, {f"{n}.delta": la.delta for n, la in self.layers.items()})

    def after_step(self, step: int) -> None:
        """The weights take the new values."""
        for layer in self.layers.values():
            layer.refresh()

    def load_state(self, state: Any) -> None:
        """The deltas are back: so are the weights."""
        self.after_step(0)

    def verify(self) -> None:
        """See `Adaptation.verify`."""
        for name, kept in self._kept.items():
            require_zeros(self.layers[name].weight, kept, f"{name}.weight")

    def measured(self) -> dict[str, Any]:
        """How many rows or columns train, by module."""
        return {"trained": {n: len(la.index) for n, la in self.layers.items()}}

    def write(self, out: Path) -> None:
        """An S2FT folder (docs/formats/s2ft.md)."""
        settings = asdict(self._settings)
        ratios = {k: settings[k] for k in ("v", "o", "up", "gate", "down")}
        write_s2ft(
            out,
            {n: (la.kind, la.index.tolist(), as_numpy(la.delta)) for n, la in self.layers.items()},
            facts={
                "base": self._base.name,
                "base_sha256": self._base.checked.checkpoint.identity(),
                "ratios": ratios,
                "strategy": self._settings.strategy,
                "seed": self._base.training.seed,
            },
        )


def select(base: Base, settings: S2ftSettings, rows: Tokens) -> dict[str, list[int]]:
    """Rows or columns that train, rising, by module; modules without any are left out."""
    spec = base.checked.spec
    ratios: dict[str, float] = {
        role: cast(float, getattr(settings, role)) for role in ("v", "o", "up", "gate", "down")
    }
    linears = [li for li in spec.linears() if ratios.get(li.role, 0.0) > 0.0]
    places = {li.role: _places(li, spec.head_dim) for li in linears}
    if settings.allocation == "joint":
        if settings.strategy != "R":
            raise UsageError("usage", "allocation=joint with scores", expected="strategy=R")
        wanted = [
            (r, ratios[r], places[r]) for r in ("v", "o", "up", "down", "gate") if r in places
        ]
        drawn = draw_joint(wanted, spec.layers, base.training.seed)
    else:
        drawn = _by_layer(base, settings, ratios, linears, rows)
    found: dict[str, list[int]] = {}
    for linear in linears:
        own = drawn[linear.role][linear.layer]
        index = widen(own, spec.head_dim) if linear.role in HEADS else own
        if index:
            found[linear.module] = index
    return found


def _places(linear: Linear, head_dim: int) -> int:
    size = linear.in_features if linear.role in COLS else linear.out_features
    return size // head_dim if linear.role in HEADS else size


def _by_layer(
    base: Base,
    settings: S2ftSettings,
    ratios: dict[str, float],
    linears: list[Linear],
    rows: Tokens,
) -> dict[str, list[list[int]]]:
    spec, rng = base.checked.spec, np.random.default_rng(base.training.seed)
    scores: dict[str, Scores | None] = {li.module: None for li in linears}
    if settings.strategy != "R":
        parts = channel_scores(base, linears, settings.strategy, rows[: settings.samples])
        scores = {m: combine(settings.strategy, own) for m, own in parts.items()}
    found: dict[str, list[list[int]]] = {}
    for role in ("v", "o", "up", "down", "gate"):
        of_role = [li for li in linears if li.role == role]
        if not of_role:
            continue
        places = _places(of_role[0], spec.head_dim)
        each = counts(ratios[role], spec.layers, places, settings.allocation)
        shared = settings.shared and role in ("down", "gate") and "up" in found
        if shared and ratios[role] == ratios["up"]:
            found[role] = found["up"]
            continue
        found[role] = [
            pick(
                _of_heads(scores[li.module], role, places),
                each[li.layer],
                settings.largest,
                rng,
                places,
            )
            for li in of_role
        ]
    return found


def _of_heads(scores: Scores | None, role: str, places: int) -> Scores | None:
    return (
        scores.reshape(places, -1).sum(axis=1) if scores is not None and role in HEADS else scores
    )
