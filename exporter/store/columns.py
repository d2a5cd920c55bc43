"""Columns of a stored matrix as rows: how a weight that lies `[in, out]` is read as `[out, in]`."""

from __future__ import annotations

import os

import numpy as np

from exporter.store.dtypes import F32, to_float32
from exporter.store.header import TensorEntry
from exporter.store.plainfile import Stamp, open_stamped, read_into

_CHUNK_BYTES = 1 << 20


def read_columns(stamp: Stamp, entry: TensorEntry, c0: int, c1: int) -> F32:
    """Columns `[c0:c1]` of a matrix `[rows, columns]` as fresh float32 `[c1 - c0, rows]`.

    Reads no byte of another column; memory is the answer and about a MiB.

    Raises:
        IndexError: outside the matrix.
        InputRefused: `input-unreadable`, `file-truncated`.
    """
    count, width = entry.shape
    if not 0 <= c0 <= c1 <= width:
        raise IndexError(f"columns {c0}:{c1} of {entry.name} with {width} columns")
    out = np.empty((c1 - c0, count), np.float32)
    if not out.size:
        return out
    item = entry.dtype.nbytes
    step = max(1, _CHUNK_BYTES // (item * (c1 - c0)))
    chunk = np.empty((min(step, count), c1 - c0), entry.dtype.numpy)
    fd = open_stamped(stamp)
    try:
        for k0 in range(0, count, step):
            part = chunk[: min(step, count - k0)]
            raw, at = part.view(np.uint8), entry.start + (k0 * width + c0) * item
            if c1 - c0 == width:
                read_into(fd, at, raw.reshape(-1).data, entry.file)
            else:
                for i in range(len(part)):
                    read_into(fd, at + i * width * item, raw[i].data, entry.file)
            out[:, k0 : k0 + len(part)] = to_float32(part).T
    finally:
        os.close(fd)
    return out
