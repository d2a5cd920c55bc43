"""Codes by error feedback for one linear at a time, solved once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.tiles import tiles
from exporter.contract import QuantiseRequest
from exporter.merge.workbench import Workbench
from exporter.model import CodesAndScales, FusedTensor
from exporter.quantise.feedback import Feedback, feed_back
from exporter.quantise.scales import GRIDS, scales_of, spans
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32

SOLVE_ROWS = 1024  # in memory together: enough that numpy's own time for a column counts little


@dataclass(frozen=True)
class Stored:
    """`Quantised.block` of a weight whose codes lie on disk."""

    read: Callable[[int, int], NDArray[Any]]
    dtype: np.dtype[np.generic]  # of the codes

    def __call__(self, r0: int, r1: int) -> CodesAndScales:
        """Codes and scales of rows `[r0:r1)`."""
        block = self.read(r0, r1)
        codes = np.ascontiguousarray(block["codes"]).view(self.dtype)
        return codes, np.ascontiguousarray(block["scales"])


def solve(
    tensor: FusedTensor,
    mask: Mask | None,
    gram: F32,
    request: QuantiseRequest,
    bench: Workbench,
) -> Stored:
    """Codes and scales of a weight `[out, in]`, written to `bench`.

    Args:
        tensor: the weight, not yet quantised.
        mask: its kept positions; None: all.
        gram: `X^T X` `[in, in]` of its inputs.
        request: kind of codes, and group.
        bench: must outlive what is given back.

    Raises:
        InputRefused: `value-overflow`, `output-failed`.
    """
    out, width = tensor.shape
    groups = len(list(spans(width, request.group)))
    # Codes as bytes: numpy's file format knows no float8.
    record = np.dtype([("codes", "u1", (width,)), ("scales", "<f4", (groups,))])
    feedback = Feedback.of(gram)

    def blocks() -> Iterator[NDArray[Any]]:
        for r0, r1 in tiles(0, out, SOLVE_ROWS):
            kept = None if mask is None else mask.rows(r0, r1)
            weight = tensor.rows(r0, r1)
            scales = scales_of(weight, request.kind, request.group, tensor.name)
            codes, scales = feed_back(weight, scales, kept, feedback, request.kind, request.group)
            block = np.empty(r1 - r0, record)
            block["codes"], block["scales"] = codes.view(np.uint8), scales
            yield block

    return Stored(bench.keep_blocks((out,), record, blocks()), GRIDS[request.kind].dtype)
