"""Weights that are stored packed: their bytes against the plan, their masks against the model's."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from exporter.contract import LowerPlan, Packing, StoredTensor
from exporter.model import FusedModel, FusedTensor
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import DType
from exporter.verify.result import PackedResult


def packing_faults(stored: StoredTensor, tensor: FusedTensor, plan: LowerPlan) -> list[str]:
    """What is wrong with how a weight is stored, before its values are looked at.

    A plain weight must not have been planned as a packed one; a packed one takes exactly the bytes
    that were counted from the model's mask, and holds codes where the model has codes.
    """
    packing, planned = stored.packing, plan.packed.get(stored.name)
    if packing is None:
        return [] if planned is None else [f"{stored.name} is not packed, as it should be"]
    if planned is None:
        return [f"{stored.name} is packed, as it should not be"]
    if stored.nbytes != planned:
        return [f"{stored.name} takes {stored.nbytes} bytes, {planned} were counted"]
    want = tensor.quantised.kind if tensor.quantised else None
    got = packing.values if packing.quantised else None
    if got != want:
        return [f"{stored.name} has {got or 'plain'} values, {want or 'plain'} were asked for"]
    return []


@dataclass
class StoredMask:
    """The mask that lies in the file beside the model's, row block by row block."""

    packing: Packing
    mask: Mask | None  # of the model; None: every position is kept
    differing: int = 0
    first: tuple[int, int] | None = None

    def compare(self, r0: int, r1: int) -> None:
        """Rows `[r0:r1)`."""
        if self.packing.kept is None:
            return
        got = self.packing.kept(r0, r1)
        want = np.ones_like(got) if self.mask is None else self.mask.rows(r0, r1)
        wrong = got != want if self.packing.exact else want & ~got
        if wrong.any():
            self.differing += int(np.count_nonzero(wrong))
            if self.first is None:
                at = np.unravel_index(int(wrong.argmax()), wrong.shape)
                self.first = (r0 + int(at[0]), int(at[1]))

    def failures(self, name: str) -> list[str]:
        """One line where a bit is wrong."""
        if self.first is None:
            return []
        what = "differs from" if self.packing.exact else "lacks positions of"
        return [
            f"{name}: the stored mask {what} the model's at {self.differing} positions, the "
            f"first at {list(self.first)}"
        ]


@dataclass
class PackedTally:
    """Bytes of packed linears, and what they would be as plain arrays of the model's type."""

    packed: int = 0
    dense: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])

    def add(self, stored: StoredTensor, model: FusedModel) -> None:
        """Count a tensor, if it is packed."""
        if stored.packing is None:
            return
        dtype = model.checked.checkpoint.entries[stored.name].dtype
        item = min(dtype.nbytes, DType.F32.nbytes)  # float64 would be written as float32
        self.packed += stored.nbytes
        self.dense += math.prod(stored.shape) * item
        self.kinds[f"{stored.packing.kind}, {stored.packing.values}"] += 1

    def result(self) -> PackedResult | None:
        """None where nothing is packed."""
        if not self.kinds:
            return None
        return PackedResult(
            linears=sum(self.kinds.values()),
            nbytes=self.packed,
            dense_nbytes=self.dense,
            ratio=self.packed / self.dense,
            kinds=dict(sorted(self.kinds.items())),
        )
