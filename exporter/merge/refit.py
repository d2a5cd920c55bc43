"""Policy `refit`: least squares on the kept weights, so that outputs change least on calibration.

For each output row with kept set S and the adapted weight `t = w + d`, the row that minimises
`(w' - t) H' (w' - t)^T` over `w'` on S, with `H' = H + lambda I`, `H = X^T X` of the module's
inputs and lambda the damping of SparseGPT (Frantar and Alistarh 2023, `sparsegpt.py`:
`percdamp` = 0.01 of the mean of H's diagonal). Its normal equations are

    (H_SS + lambda I) (w'_S - t_S) = H_SP t_P,    P = what the mask prunes.

Lambda stands on both sides: then a full support gives `t` itself, an input that calibration never
saw leaves its weight as `mask` leaves it, and the error in the undamped H is never above that of
`mask`. They are solved as ALPS ends (Meng et al. 2024, section 3.3): conjugate gradients on the
fixed support, many rows at once, from the masked merge, preconditioned by the diagonal.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from exporter.adapters.tiles import zero_outside
from exporter.errors import UsageError
from exporter.merge.base import ModuleFacts
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32

DAMPING = 0.01  # of the mean of H's diagonal
# On SmolLM2's inputs the output error is within 1 % of its minimum after 24 steps.
STEPS = 32  # at most
TOLERANCE = 1e-3  # of the residual's norm, against the masked merge's


class RefitMerge:
    """The solution for rows of one module."""

    def __init__(self, gram: F32) -> None:
        self._gram = gram

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """Refitted rows; `weight + delta` where the base is dense."""
        weight += delta
        if kept is None:
            return weight
        return refit_rows(weight, kept, self._gram)


class RefitPolicy:
    """As `mask`, but what is kept makes up for what is dropped, as far as inputs correlate."""

    name: ClassVar[str] = "refit"
    keeps_mask: ClassVar[bool] = True
    moves_mask: ClassVar[bool] = False
    keeps_branch: ClassVar[bool] = False
    drops_outside: ClassVar[bool] = False
    solves: ClassVar[bool] = True
    cost: ClassVar[str] = "as sparse and as fast; loses less than mask; needs --calibration"

    def bind(self, facts: ModuleFacts) -> RefitMerge:
        """The merge with the module's Gram matrix."""
        if facts.gram is None:
            raise calibration_needed(self.name)
        return RefitMerge(facts.gram())


def calibration_needed(policy: str) -> UsageError:
    """The error of a policy that was asked for without what it needs."""
    return UsageError(
        "calibration-needed",
        f"--on-merge {policy} without --calibration",
        expected="--calibration FILE: a UTF-8 text, or token ids (.json, .safetensors)",
    )


def refit_rows(
    target: F32,
    kept: Bools,
    gram: F32,
    *,
    steps: int = STEPS,
    tolerance: float = TOLERANCE,
) -> F32:
    """Least-squares rows on the support, float32 `[r, in]`; +0.0 outside `kept`.

    Args:
        target: rows of `W + D`; not kept.
        kept: bool `[r, in]`.
        gram: `H`, float32 `[in, in]`, positive semidefinite. All zeros give the masked rows.
        steps: at most.
        tolerance: where a row stops: its residual over the masked row's, preconditioned norm.
    """
    # Multiplying by these is several times faster than masked assignment.
    on = kept.astype(np.float32)
    diagonal = np.diagonal(gram)
    damping = np.float32(DAMPING * float(np.mean(diagonal, dtype=np.float64)))
    scale: F32 = diagonal + damping
    inverse: F32 = np.zeros_like(scale)
    np.divide(1.0, scale, out=inverse, where=scale > 0)
    found: F32 = target * on
    residual: F32 = np.matmul(target - found, gram)
    residual *= on
    direction: F32 = residual * inverse
    energy = _dots(residual, direction)
    enough = energy * np.float32(tolerance**2)
    for _ in range(steps):
        step: F32 = np.matmul(direction, gram)
        step += damping * direction
        step *= on
        curvature = _dots(direction, step)
        going = (energy > enough) & (curvature > 0)
        if not going.any():
            break
        length = np.divide(energy, curvature, out=np.zeros_like(energy), where=going)
        found += length[:, None] * direction
        residual -= length[:, None] * step
        scaled: F32 = residual * inverse
        before, energy = energy, _dots(residual, scaled)
        turn = np.divide(energy, before, out=np.zeros_like(energy), where=going)
        direction *= turn[:, None]
        direction += scaled
    zero_outside(found, kept)
    return found


def _dots(a: F32, b: F32) -> F32:
    """Dot product of each row of `a` with that of `b`."""
    return np.einsum("ij,ij->i", a, b)
