"""Row blocks of a tensor in its stored type, about 1 MiB each: they stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from exporter.store.checkpoint import Checkpoint, TensorEntry

BLOCK_BYTES = 1 << 20


def row_ranges(entry: TensorEntry) -> Iterator[tuple[int, int]]:
    """`(r0, r1)` of blocks of about `BLOCK_BYTES`, in order; a row is never split."""
    rows = entry.shape[0]
    step = max(1, BLOCK_BYTES * rows // max(1, entry.nbytes))
    for r0 in range(0, rows, step):
        yield r0, min(rows, r0 + step)


def blocks(checkpoint: Checkpoint, tensor: str) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """`(r0, rows [r0:r1])`, in order; a scalar comes as one block of shape [1]."""
    entry = checkpoint.entries[tensor]
    if not entry.shape:
        yield 0, checkpoint.view(tensor).reshape(1)
        return
    for r0, r1 in row_ranges(entry):
        yield r0, checkpoint.view(tensor, r0, r1)
