"""Packed-bit mask of one linear: which weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Mask:
    """Kept positions of a weight `[out, in]`.

    `bits` is uint8 `[out, ceil(in / 8)]`, row-major, bit order of `numpy.packbits(..., "big")`:
    the first column is the highest bit; padding bits are 0.
    """

    out_features: int
    in_features: int
    bits: U8

    @classmethod
    def from_bool(cls, kept: Bools) -> Mask:
        """Pack bool `[out, in]`, True = kept."""
        raise NotImplementedError  # SPARSITY

    def rows(self, r0: int = 0, r1: int | None = None) -> Bools:
        """Unpacked bool `[r1 - r0, in]`."""
        raise NotImplementedError  # SPARSITY

    @property
    def kept(self) -> int:
        """Number of kept positions."""
        raise NotImplementedError  # SPARSITY

    def contains(self, other: Mask) -> bool:
        """Whether every position kept by `other` is kept here."""
        raise NotImplementedError  # SPARSITY

    def sha256(self) -> str:
        """Hex digest over shape and bits; equal masks, equal digests."""
        raise NotImplementedError  # SPARSITY

    def iter_rows(self, step: int) -> Iterator[tuple[int, Bools]]:
        """`(r0, bool block)` in steps of `step` rows."""
        raise NotImplementedError  # SPARSITY
