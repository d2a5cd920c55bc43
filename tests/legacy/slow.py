"""The two bitmask formats written and read the slow, obvious way, in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np


def slow_read(compressed: Any, bitmask: Any, columns: int) -> list[list[float]]:
    """Rows of the dense matrix: one bit and one value after the other."""
    left = [float(v) for v in np.asarray(compressed, np.float64).reshape(-1)]
    rows: list[list[float]] = []
    for packed in bitmask.tolist():
        row = [0.0] * columns
        for column in range(columns):
            if packed[column // 8] >> (column % 8) & 1:
                row[column] = left.pop(0)
        rows.append(row)
    assert left == []
    return rows


def slow_write(rows: Any, stand_in: bool) -> tuple[list[float], list[list[int]], list[int]]:
    """Values, bytes of the bitmask, and row offsets of the non-zeros of `rows`.

    With `stand_in`, groups of four are filled up to two from their last columns: two zeros take
    columns 2 and 3; beside one value, column 3, or the other of 2 and 3 where that is taken. One
    beside column 0 is column 2.
    """
    values: list[float] = []
    masks: list[list[int]] = []
    offsets: list[int] = []
    for row in np.asarray(rows, np.float64).tolist():
        offsets.append(len(values))
        kept = [value != 0 for value in row]
        for start in range(0, len(row), 4) if stand_in else ():
            group = kept[start : start + 4]
            wanted = [2, 3] if group[0] else [3, 2]
            while sum(group) < 2:
                group[next(i for i in wanted if not group[i])] = True
            kept[start : start + 4] = group
        values += [value for value, keep in zip(row, kept, strict=True) if keep]
        packed = [0] * -(-len(row) // 8)
        for column, keep in enumerate(kept):
            packed[column // 8] |= keep << (column % 8)
        masks.append(packed)
    return values, masks, offsets
