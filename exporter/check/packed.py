"""Where the values of a linear are not zero, as packed rows `[out, in]` however it is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exporter.check.blocks import blocks
from exporter.check.values import Scanner
from exporter.sparsity.bits import U8
from exporter.store.checkpoint import Checkpoint


def packed_rows(checkpoint: Checkpoint, tensor: str, scanner: Scanner) -> Iterator[tuple[int, U8]]:
    """`(r0, packed rows from r0 on)`, in order; `scanner` sees every stored value once.

    A transposed tensor comes as one block, since its first row needs the last one stored: an
    eighth of a byte for each value.

    Raises:
        InputRefused: `value-not-finite`, `value-overflow`, those of `blocks`.
    """
    if tensor not in checkpoint.transposed:
        for r0, rows in blocks(checkpoint, tensor):
            yield r0, np.packbits(scanner.scan(rows, r0), axis=1)
        return
    # Eight stored rows make one byte of every row of the transpose.
    parts = [
        np.packbits(scanner.scan(rows, r0), axis=0)
        for r0, rows in blocks(checkpoint, tensor, multiple=8)
    ]
    if parts:
        yield 0, np.ascontiguousarray(np.concatenate(parts).T)
