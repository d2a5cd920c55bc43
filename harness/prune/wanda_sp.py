"""wanda-sp: whole heads and whole MLP channels by Wanda's score, no update.

The structured variant of Wanda in FLAP's code (An et al. 2024; `lib/prune.py prune_wanda_sp`): the
score `|W| |x|` of `o_proj` and `down_proj` is averaged over output rows; a head's is the sum over
its channels. With grouped queries a key-value head and all query heads that read it go together,
since the others would need its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.arch.model_spec import Linear, ModelSpec
from exporter.errors import InputRefused
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32

F64 = NDArray[np.float64]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
READ = ("o", "down")  # whose inputs are scored


@dataclass(frozen=True)
class Units:
    """What a block keeps: key-value heads, and MLP channels."""

    heads: Bools  # [kv_heads]
    channels: Bools  # [intermediate]


def column_scores(weight: F32, norm: F32) -> F64:
    """Mean over output rows of `|W| |x|`, by input, `[in]`."""
    return np.abs(weight).mean(axis=0, dtype=np.float64) * norm


def choose_units(spec: ModelSpec, o: F64, down: F64, share: float) -> Units:
    """Drop `floor(share * count)` key-value heads and as many MLP channels, the lowest scores.

    Args:
        spec: heads and their sizes.
        o: score of each input of `o_proj`, `[heads * head_dim]`.
        down: score of each input of `down_proj`, `[intermediate]`.
        share: of heads, and of channels, to drop.
    """
    groups = o.reshape(spec.kv_heads, -1).sum(axis=1)
    return Units(_without_lowest(groups, share), _without_lowest(down, share))


def kept_positions(spec: ModelSpec, linear: Linear, units: Units) -> Bools:
    """Mask `[out, in]` of a linear whose units go: whole rows, of `o` and `down` whole columns."""
    shape = (linear.out_features, linear.in_features)
    if linear.role in ("gate", "up"):
        return np.broadcast_to(units.channels[:, None], shape)
    if linear.role == "down":
        return np.broadcast_to(units.channels[None, :], shape)
    per = spec.head_dim * (1 if linear.role in ("k", "v") else spec.heads // spec.kv_heads)
    rows = np.repeat(units.heads, per)
    return np.broadcast_to(rows[None, :] if linear.role == "o" else rows[:, None], shape)


def require_units(spec: ModelSpec) -> None:
    """Refuse a model whose blocks are not attention and a gated MLP.

    Raises:
        InputRefused: `arch-unsupported`.
    """
    roles = {linear.role for linear in spec.linears()}
    if roles != set(ROLES):
        raise InputRefused(
            "arch-unsupported",
            f"wanda-sp on a {spec.family} model with {', '.join(sorted(roles))}",
            expected=f"blocks of {', '.join(ROLES)}",
            file="config.json",
        )


def _without_lowest(scores: F64, share: float) -> Bools:
    kept = np.ones(scores.shape, dtype=np.bool_)
    kept[np.argsort(scores, kind="stable")[: int(len(scores) * share + 1e-9)]] = False
    return kept
