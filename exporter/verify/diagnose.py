"""Say what is wrong with a tensor that is not what it should be: the usual mistakes by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exporter.contract import StoredTensor
from exporter.model import FusedModel, FusedTensor
from exporter.store.dtypes import F32, DType, round_float32, to_float32

_RATIO_SPREAD = 1e-5  # of a constant factor, in float32
Explainer = Callable[[F32, F32], str | None]


def explain_values(
    stored: StoredTensor, tensor: FusedTensor, model: FusedModel, r0: int, got: F32, want: F32
) -> str:
    """One clause on why rows `[r0 : r0 + len]` are `got` and not `want` (float32 both).

    Reads at most one row of the other tensors, and the whole tensor where it is square.
    """
    for explain in (_one_bit, _rounded_again, _scaled):
        clause = explain(got, want)
        if clause is not None:
            return clause
    clause = _transposed(stored, tensor) or _another(stored, tensor, model)
    return clause or _plain(r0, got, want)


def explain_shape(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    """Why a shape is wrong, if that can be seen."""
    return "it is transposed" if got == want[::-1] else "another tensor, or a part of one"


def same_bits(got: F32, want: F32) -> bool:
    """Bit for bit, so that NaN equals itself and -0.0 is not 0.0."""
    return bool(np.array_equal(_bits(got), _bits(want)))


def _bits(values: F32) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    return np.ascontiguousarray(values).view(np.uint32)


def _one_bit(got: F32, want: F32) -> str | None:
    differ = np.flatnonzero(_bits(got).ravel() != _bits(want).ravel())
    if len(differ) != 1:
        return None
    flipped = int(_bits(got).ravel()[differ[0]] ^ _bits(want).ravel()[differ[0]])
    return "one bit of one value differs" if flipped.bit_count() == 1 else None


def _rounded_again(got: F32, want: F32) -> str | None:
    for dtype in (DType.BF16, DType.F16):
        if not np.isfinite(want).all() or np.abs(want).max(initial=0.0) > 65000:
            continue
        if same_bits(got, to_float32(round_float32(want, dtype, tensor=""))):
            return f"the values were rounded once more, to {dtype.value}"
    return None


def _scaled(got: F32, want: F32) -> str | None:
    live = want != 0
    if not live.any() or ((got != 0) != live).any():
        return None
    ratio = got[live].astype(np.float64) / want[live]
    if np.ptp(ratio) <= _RATIO_SPREAD * abs(ratio[0]):
        return f"every value is {float(np.median(ratio)):.6g} times what it should be"
    return None


def _transposed(stored: StoredTensor, tensor: FusedTensor) -> str | None:
    if len(tensor.shape) != 2 or tensor.shape[0] != tensor.shape[1]:
        return None
    first = stored.rows(0, 1)[0]
    column = tensor.rows(0, tensor.shape[0])[:, 0]
    return "it is transposed" if same_bits(first, column) else None


def _another(stored: StoredTensor, tensor: FusedTensor, model: FusedModel) -> str | None:
    first = stored.rows(0, 1)
    for name, other in model.tensors.items():
        if name == tensor.name or other.shape != tensor.shape:
            continue
        if same_bits(first, other.rows(0, 1)):
            return f"it holds the values of {name}"
    return None


def _plain(r0: int, got: F32, want: F32) -> str:
    differ = _bits(got) != _bits(want)
    first = np.argwhere(differ)[0].tolist()
    first[0] += r0
    with np.errstate(all="ignore"):
        worst = float(np.abs(got.astype(np.float64) - want)[differ].max())
    return (
        f"{int(differ.sum())} values differ in its rows from {r0}, first at {first}, by {worst:.3g}"
    )
