"""The matrices that all modules of a VeRA share: stored in the file, or drawn again from a seed.

Meaning: peft/tuners/vera/model.py of PEFT 0.21 (`_init_vera_A_vera_B`, `_kaiming_init`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.errors import InputRefused
from exporter.model import RowReader
from exporter.store.dtypes import F32

SHARED_A, SHARED_B = "base_model.vera_A", "base_model.vera_B"


@dataclass(frozen=True)
class Projection:
    """A `[r, in]` and B `[out, r]` for the largest in and out among the adapted modules."""

    a: Callable[[], F32]
    b: RowReader
    top: float  # largest magnitude of A times that of B
    tensors: int  # of the file that were used


def stored(tensors: TensorFile, rank: int, largest: tuple[int, int]) -> Projection:
    """The matrices in the file (`save_projection`).

    Args:
        tensors: the adapter's file.
        rank: r of the config.
        largest: `(out, in)`, the largest of the adapted modules.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-shape`, `value-not-finite`,
            `dtype-unsupported`.
    """
    out, width = largest
    for name, want in ((SHARED_A, (rank, width)), (SHARED_B, (out, rank))):
        if name not in tensors.entries:
            raise InputRefused(
                "adapter-tensor-missing",
                f"save_projection is true, and {name} is not there",
                expected=f"{SHARED_A} and {SHARED_B}",
                file=tensors.label,
            )
        found = tensors.entries[name].shape
        if found != want:
            raise InputRefused(
                "adapter-shape",
                f"shape {list(found)}",
                expected=f"{list(want)}, by r and the largest of the adapted modules",
                file=tensors.label,
                tensor=name,
            )
    top = largest_magnitude(tensors, SHARED_A) * largest_magnitude(tensors, SHARED_B)
    return Projection(tensors.float32(SHARED_A), tensors.rows(SHARED_B), top, 2)


def drawn(tensors: TensorFile, rank: int, largest: tuple[int, int], seed: int) -> Projection:
    """The matrices as PEFT draws them where the file has none.

    torch's CPU generator is MT19937 seeded as numpy's legacy one, and takes 24 bits for a float
    (ATen/core/TransformationHelper.h, `uniform_real`), so the bits are the same without torch.

    Raises:
        InputRefused: `adapter-tensor-unused` where the file has a matrix all the same;
            `adapter-invalid` for a seed that numpy would seed in another way.
    """
    for name in (SHARED_A, SHARED_B):
        if name in tensors.entries:
            raise InputRefused(
                "adapter-tensor-unused",
                "save_projection is false, and the matrix is in the file",
                expected="save_projection true in adapter_config.json",
                file=tensors.label,
                tensor=name,
            )
    if not 0 <= seed < 1 << 32:
        raise InputRefused(
            "adapter-invalid",
            f"projection_prng_key = {seed}",
            expected="a seed of 32 bits, or an adapter saved with save_projection true",
            file=tensors.label,
        )
    random = np.random.RandomState(seed)
    out, width = largest
    a = _uniform(random, (rank, width), width)
    b = _uniform(random, (out, rank), rank)
    return Projection(lambda: a, lambda r0, r1: b[r0:r1], 6.0 / math.sqrt(max(rank * width, 1)), 0)


def _uniform(random: np.random.RandomState, shape: tuple[int, int], fan_in: int) -> F32:
    """Kaiming-uniform float32 for ReLU: bound `sqrt(6 / fan_in)`."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(max(fan_in, 1)))
    low, high = np.float32(-bound), np.float32(bound)
    raw = random.randint(0, 1 << 32, size=shape, dtype=np.uint32) & np.uint32((1 << 24) - 1)
    unit = raw.astype(np.float32) * np.float32(2.0**-24)
    # torch's compilers fuse the product and the sum: one rounding, here by way of float64.
    return (unit.astype(np.float64) * (high - low) + low).astype(np.float32)
