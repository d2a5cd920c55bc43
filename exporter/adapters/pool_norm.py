"""Normalisers of a pooling adapter's G that fold into its table, computed in float64."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Norm = Literal["none", "wd", "maxnorm", "fro", "row", "spectral"]

NEEDS_TAU: frozenset[str] = frozenset({"maxnorm", "spectral"})
NEEDS_GAMMA: frozenset[str] = frozenset({"fro", "row"})
# They normalise what flows through the layer, so no weight computes them.
DATA_DEPENDENT = ("layernorm", "rmsnorm", "batchnorm", "groupnorm", "instancenorm")


def gamma_shape(norm: str, gout: int) -> tuple[int, ...] | None:
    """Shape of the learned factor that `norm` needs; None where it needs none."""
    return {"fro": (1,), "row": (gout,)}.get(norm)


def normalise(g: F64, norm: Norm, tau: float | None, eps: float, gamma: F64 | None) -> F64:
    """The normalised G `[gout, gin]`.

    Args:
        g: raw G, float64.
        norm: `none`; `wd` (weight decay, of training alone); `maxnorm` `G min(1, tau / |G|_F)`;
            `fro` `gamma G / (|G|_F + eps)`; `row`, the same for each row; `spectral`
            `G min(1, tau / sigma_1)`.
        tau: bound of `maxnorm` and `spectral`.
        eps: of `fro` and `row`.
        gamma: `[1]` for `fro`, `[gout]` for `row`.

    Raises:
        ValueError: a number that the norm needs is not there.
    """
    if norm in ("none", "wd"):
        return g
    if norm in NEEDS_TAU:
        if tau is None:
            raise ValueError(f"{norm} needs tau")
        top = _frobenius(g) if norm == "maxnorm" else float(np.linalg.svd(g, compute_uv=False)[0])
        return g if top <= tau else g * (tau / top)
    if gamma is None:
        raise ValueError(f"{norm} needs gamma")
    if norm == "fro":
        return g * (float(gamma[0]) / (_frobenius(g) + eps))
    lengths = np.sqrt(np.einsum("ab,ab->a", g, g))
    return g * (gamma / (lengths + eps))[:, None]


def _frobenius(g: F64) -> float:
    # Without BLAS, whose threads would decide the order of the sum.
    return float(np.sqrt(np.einsum("ab,ab->", g, g)))
