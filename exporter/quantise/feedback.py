"""Rounding whose errors other weights of the row make up for: GPTQ on a fixed mask.

GPTQ (Frantar et al. 2023, arXiv 2210.17323, section 3.3) rounds a weight column by column and
changes the columns that follow so that the outputs change least, by rows of the Cholesky factor of
`(H + lambda I)^-1`, `H = X^T X`. The same codes follow without the inverse (LDLQ; Chee et al.
2023, arXiv 2307.13304, theorem 6): with `H + lambda I = R R^T`, R upper triangular, and errors
`e = w - q` so far, column k rounds

    w_k + sum over i < k of e_i F_ik,    F_ik = R_ik / R_kk.

A pruned position takes part as in SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, section
3.4): when its turn comes it is 0, whatever earlier errors would put there; `w = q = 0`, so it
feeds nothing on. Earlier columns then counted on positions that are not free. Sweeps of cyclic
coordinate descent over the codes (QuantEase; Behdin et al. 2023, arXiv 2309.01885) mend that: each
kept code in turn becomes the best one for all the others as they are,

    w_k + sum over i != k of e_i H'_ik / H'_kk,    H' = H + lambda I,

and never raises `e H' e^T`. docs/reference/quantised-values.md compares this with masking out the
update and with the exact H of each row's kept inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.model import CodesAndScales, QuantKind
from exporter.quantise.rounding import nearest
from exporter.quantise.scales import GRIDS, scale_of, spans
from exporter.sparsity.mask import Bools
from exporter.store.dtypes import F32

DAMPING = 0.01  # of the mean of H's diagonal, as GPTQ's `percdamp`
BLOCK = 128  # columns between two products with all other errors (GPTQ's lazy updates)
SWEEPS = 2  # of coordinate descent; a third wins little
Take = Callable[[int, F32], F32]


@dataclass(frozen=True)
class Feedback:
    """What the error of a column asks of another, from one Gram matrix; float32 `[in, in]`."""

    later: F32  # F, upper triangular
    others: F32  # H'_ik / H'_kk

    @classmethod
    def of(cls, gram: F32) -> Feedback:
        """From `H`. An input that calibration never saw gets no feedback, nor does any where H is
        all zeros. Memory: two float64 copies of H at most."""
        damped = gram.astype(np.float64)
        diagonal = np.einsum("ii->i", damped)
        step = DAMPING * float(diagonal.mean()) or 1.0
        diagonal += step
        upper = _upper(damped)
        while upper is None:  # float32 sums over much text can leave H a little below 0
            step *= 10.0
            diagonal += step
            upper = _upper(damped)
        others: F32 = (damped / diagonal).astype(np.float32)
        del damped, diagonal
        return cls((upper / np.diagonal(upper)).astype(np.float32), others)


def _upper(matrix: NDArray[np.float64]) -> NDArray[Any] | None:
    """R, upper triangular, of `R R^T`: read backwards, the usual lower factor is an upper one."""
    try:
        return np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        return None


def feed_back(
    weight: F32,
    scales: F32,
    kept: Bools | None,
    feedback: Feedback,
    kind: QuantKind,
    group: int,
    sweeps: int = SWEEPS,
) -> CodesAndScales:
    """Codes `[rows, in]` and scales `[rows, G]` of rows `[rows, in]`; each row by itself.

    The scale of a whole row is that of its weights. That of a group is taken when the group
    begins, from its weights as they would be if no error were made in it.

    Args:
        weight: float32, +0.0 outside `kept`.
        scales: `scales_of` it.
        kept: bool `[rows, in]`; None: all.
        feedback: of the module's Gram matrix.
        kind: of codes.
        group: columns that share a scale, 0 for all.
        sweeps: of coordinate descent.

    """
    rows = _Rows(weight, scales, kept, kind, group)
    errors = np.zeros_like(rows.weight)
    for c0, c1 in rows.blocks:
        pull = feedback.later[:c0, c0:c1].T @ errors[:c0]
        start = _Start(c0, rows.weight[c0:c1], rows.weight[c0:c1] + pull)
        within = feedback.later[c0:c1, c0:c1]
        if group:
            rows.rescale(c0, rows.sweep(start, within, lambda _, x: x)[0])
        errors[c0:c1] = rows.sweep(start, within, rows.take(c0))[1]
    for _ in range(sweeps):
        for c0, c1 in rows.blocks:
            now = rows.values(c0, c1)
            pull = feedback.others[:, c0:c1].T @ errors
            within = feedback.others[c0:c1, c0:c1]
            errors[c0:c1] += rows.sweep(_Start(c0, now, now + pull), within, rows.take(c0))[1]
    return rows.codes, rows.scales


@dataclass(frozen=True)
class _Start:
    """A block of columns `[n, rows]` before its own errors feed one another."""

    first: int  # column
    weight: F32  # that errors are counted from
    wanted: F32  # with the errors outside the block


class _Rows:
    """Some rows on their way to codes; transposed, for one column after the other is used."""

    def __init__(
        self, weight: F32, scales: F32, kept: Bools | None, kind: QuantKind, group: int
    ) -> None:
        self.weight = np.ascontiguousarray(weight.T)
        self.scales = scales.copy()
        self.codes = np.zeros(weight.shape, GRIDS[kind].dtype)
        self.blocks = list(spans(weight.shape[1], group or BLOCK))
        self._kept = np.ones(self.weight.shape, np.bool_) if kept is None else kept.T.copy()
        self._kind: QuantKind = kind
        self._group = group

    def take(self, first: int) -> Take:
        """What writes the code nearest to each column from `first` on, and gives its value."""
        scale = self._scale(first)

        def write(j: int, wanted: F32) -> F32:
            code = nearest(wanted[:, None], scale, self._kind)[:, 0]
            self.codes[:, first + j] = code
            return code.astype(np.float32) * scale

        return write

    def rescale(self, first: int, wanted: F32) -> None:
        """Set the scale of the group that begins at column `first`, for values `[n, rows]`."""
        self.scales[:, first // self._group] = scale_of(wanted.T, self._kind)

    def values(self, c0: int, c1: int) -> F32:
        """What the codes of columns of one scale stand for, `[n, rows]`."""
        return self.codes[:, c0:c1].T.astype(np.float32) * self._scale(c0)

    def sweep(self, start: _Start, feedback: F32, take: Take) -> tuple[F32, F32]:
        """What each column of a block would have been, and its error, where `take(j, wanted)`
        gives the values that stand for its column j; both `[n, rows]`."""
        wanted, errors = np.empty_like(start.wanted), np.zeros_like(start.wanted)
        for j in range(len(wanted)):
            now = start.wanted[j] + feedback[:j, j] @ errors[:j]
            now *= self._kept[start.first + j]
            wanted[j] = now
            errors[j] = start.weight[j] - take(j, now)
        return wanted, errors

    def _scale(self, column: int) -> F32:
        return self.scales[:, column // self._group if self._group else 0]
