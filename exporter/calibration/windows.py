"""Which windows of a text are observed, and which are held out: no chance, no overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.calibration.request import LENGTH, CalibrationRequest
from exporter.contract import Tokens
from exporter.errors import InputRefused, UsageError


@dataclass(frozen=True)
class Windows:
    """Windows of equal length, one after the other in their file, those held out last."""

    ids: Tokens  # [n, length]
    held_out: int

    @property
    def observed(self) -> int:
        """Windows that the Gram matrices are summed over."""
        return len(self.ids) - self.held_out


def choose(
    request: CalibrationRequest, ids: Tokens, evaluation: Tokens | None, positions: int
) -> Windows:
    """Cut both texts into windows and take evenly spaced ones.

    Without a text for the evaluation the last windows are held out, at most a quarter of all.

    Args:
        request: how much.
        ids: of the calibration file, `[n]`.
        evaluation: of the held-out file.
        positions: longest sequence of the model.

    Raises:
        UsageError: `usage` for windows longer than the model reads.
        InputRefused: `data-invalid` where a text is too short.
    """
    length = request.length or min(LENGTH, positions)
    if length > positions:
        raise UsageError(
            "usage", f"windows of {length} tokens", expected=f"at most the model's {positions}"
        )
    most = max(1, request.held_out // length)
    if evaluation is None:
        rows = _cut(ids, length, 2, request.file.name)
        count = min(most, max(1, len(rows) // 4))
        rows, rest = rows[: len(rows) - count], rows[len(rows) - count :]
    else:
        rows = _cut(ids, length, 1, request.file.name)
        name = request.evaluation.name if request.evaluation else "the held-out text"
        rest = _spread(_cut(evaluation, length, 1, name), most)
    rows = _spread(rows, max(1, request.tokens // length))
    return Windows(np.concatenate([rows, rest]), len(rest))


def _cut(ids: Tokens, length: int, least: int, name: str) -> Tokens:
    count = ids.size // length
    if count < least:
        raise InputRefused(
            "data-invalid",
            f"{ids.size} tokens",
            expected=f"at least {least} windows of {length} tokens",
            file=name,
            hint="Give more text, or a smaller length.",
        )
    return ids[: count * length].reshape(count, length)


def _spread(rows: Tokens, most: int) -> Tokens:
    """At most `most` rows, evenly spaced from the first."""
    count = min(most, len(rows))
    return rows[np.arange(count) * len(rows) // count]
