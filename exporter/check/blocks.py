"""Row blocks of a tensor in its stored type, about 512 KiB each: they stay in a core's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from exporter.store.checkpoint import Checkpoint, TensorEntry
from exporter.store.plainfile import open_stamped, read_into

BLOCK_BYTES = 1 << 19


def row_ranges(entry: TensorEntry, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """`(r0, r1)` of blocks of about `BLOCK_BYTES`, in order; a row is never split, and every
    block but the last has a multiple of `multiple` rows."""
    rows = entry.shape[0]
    step = BLOCK_BYTES * rows // max(1, entry.nbytes)
    step = max(multiple, step // multiple * multiple)
    for r0 in range(0, rows, step):
        yield r0, min(rows, r0 + step)


def blocks(
    checkpoint: Checkpoint, tensor: str, multiple: int = 1
) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """`(r0, rows [r0:r1])` of axis 0 as stored, in order; `multiple` as in `row_ranges`. The next
    block takes the memory of the last.

    Read into one buffer, not mapped: every page of a map that is touched counts as resident,
    and the fault that brings it in costs more than the copy.

    Raises:
        InputRefused: `input-unreadable`, `file-truncated`.
    """
    entry = checkpoint.entries[tensor]
    if not entry.nbytes:
        return
    width = entry.nbytes // entry.shape[0]
    buffer = np.empty(max(BLOCK_BYTES, multiple * width), np.uint8)
    fd = open_stamped(checkpoint.files[entry.file])
    try:
        for r0, r1 in row_ranges(entry, multiple):
            raw = buffer[: (r1 - r0) * width]
            read_into(fd, entry.start + r0 * width, raw.data, entry.file)
            yield r0, raw.view(entry.dtype.numpy).reshape(r1 - r0, *entry.shape[1:])
    finally:
        os.close(fd)
