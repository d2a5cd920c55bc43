"""Packed-bit mask of one linear: which weights are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.sparsity.bits import U8, packed_width, padding_row, popcount

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Mask:
    """Kept positions of a weight `[out, in]`.

    `bits` is uint8 `[out, ceil(in / 8)]`, row-major, bit order of `numpy.packbits(..., "big")`:
    the first column is the highest bit; padding bits are 0.

    Raises:
        ValueError: `bits` has another type or shape, or a padding bit that is not 0.
    """

    out_features: int
    in_features: int
    bits: U8

    def __post_init__(self) -> None:
        """Refuse bits that are no mask: every count below trusts the padding."""
        want = (self.out_features, packed_width(self.in_features))
        if self.bits.dtype != np.uint8 or self.bits.shape != want:
            raise ValueError(f"bits are {self.bits.dtype}{self.bits.shape}, not uint8{want}")
        if padding_row(self.bits, self.in_features) is not None:
            raise ValueError("a padding bit is not 0")

    @classmethod
    def from_bool(cls, kept: Bools) -> Mask:
        """Pack bool `[out, in]`, True = kept."""
        out, width = kept.shape
        return cls(out, width, np.packbits(kept, axis=1))

    def rows(self, r0: int = 0, r1: int | None = None) -> Bools:
        """Unpacked bool `[r1 - r0, in]`."""
        block = np.unpackbits(self.bits[r0:r1], axis=1, count=self.in_features)
        return block.view(np.bool_)

    @property
    def kept(self) -> int:
        """Number of kept positions."""
        return popcount(self.bits)

    def contains(self, other: Mask) -> bool:
        """Whether every position kept by `other` is kept here."""
        self._same_shape(other)
        return not bool(np.any(other.bits & ~self.bits))

    def sha256(self) -> str:
        """Hex digest over shape and bits; equal masks, equal digests."""
        digest = hashlib.sha256(f"mask {self.out_features} {self.in_features}\n".encode())
        digest.update(self.bits.tobytes())
        return digest.hexdigest()

    def iter_rows(self, step: int) -> Iterator[tuple[int, Bools]]:
        """`(r0, bool block)` in steps of `step` rows."""
        for r0 in range(0, self.out_features, step):
            yield r0, self.rows(r0, r0 + step)

    def __eq__(self, other: object) -> bool:
        """Equal shape and equal kept positions."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self.in_features == other.in_features and np.array_equal(self.bits, other.bits)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # holds an array

    def _same_shape(self, other: Mask) -> None:
        if (self.out_features, self.in_features) != (other.out_features, other.in_features):
            raise ValueError("masks of different shapes")
