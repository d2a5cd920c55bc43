"""Where masks come from, and the rule that no weight outside its mask has a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.arch.model_spec import Linear, ModelSpec
from exporter.check.packed import packed_rows
from exporter.check.values import Scanner
from exporter.errors import InputRefused
from exporter.sparsity.bits import U8, popcount
from exporter.sparsity.mask import Mask
from exporter.store.checkpoint import Checkpoint
from exporter.store.masks import MasksFile


@dataclass(frozen=True)
class ZerosMasks:
    """Masks read from the zeros of the stored weights: kept = not zero. -0.0 is a zero."""

    checkpoint: Checkpoint

    @property
    def origin(self) -> str:
        """ "zeros"."""
        return "zeros"

    def mask(self, linear: Linear) -> Mask:
        """Packed mask `[out, in]` of the stored weight.

        Raises:
            InputRefused: `value-not-finite`, `value-overflow`.
        """
        entry = self.checkpoint.entries[linear.weight]
        scanner = Scanner(linear.weight, entry.dtype.numpy, entry.file)
        packed = [bits for _, bits in packed_rows(self.checkpoint, linear.weight, scanner)]
        return Mask(linear.out_features, linear.in_features, np.concatenate(packed))


@dataclass(frozen=True)
class FileMasks:
    """Masks read from a masks file."""

    file: MasksFile

    @property
    def origin(self) -> str:
        """The file's name."""
        return self.file.stamp.name

    def mask(self, linear: Linear) -> Mask:
        """Packed mask `[out, in]` of the file.

        Raises:
            InputRefused: `mask-invalid`.
        """
        return self.file.mask(linear.module)


def linear_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Module -> (out, in) of every prunable linear."""
    return {x.module: (x.out_features, x.in_features) for x in spec.linears()}


@dataclass
class Disagreement:
    """How the weights of one linear and its mask of a file differ, block by block."""

    tensor: str
    file: str
    outside: int = 0  # weights that have a value where the mask prunes
    kept_zeros: int = 0  # zeros where the mask keeps: allowed
    first: tuple[int, int] | None = None

    def add(self, row: int, nonzero: U8, kept: U8) -> None:
        """Compare packed rows of the weights with those of the mask."""
        stray = nonzero & ~kept
        self.kept_zeros += popcount(kept & ~nonzero)
        if not stray.any():
            return
        self.outside += popcount(stray)
        if self.first is None:
            bits = np.unpackbits(stray, axis=1)
            at = np.unravel_index(int(bits.argmax()), bits.shape)
            self.first = (row + int(at[0]), int(at[1]))

    def settle(self, pruned: int) -> None:
        """Refuse a linear with values outside its mask, which prunes `pruned` weights.

        Raises:
            InputRefused: `mask-mismatch` with counts and the first position.
        """
        if self.first is None:
            return
        raise InputRefused(
            "mask-mismatch",
            f"{self.outside} of the {pruned} weights that the mask prunes are not zero, "
            f"the first at {list(self.first)}",
            expected="zeros wherever the mask prunes",
            file=self.file,
            tensor=self.tensor,
        )
