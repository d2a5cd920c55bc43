"""The contract of a merge policy: (W, M, delta) -> W', row block by row block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from exporter.errors import UsageError
from exporter.sparsity.mask import Bools
from exporter.sparsity.pattern import Pattern
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class DeltaShare:
    """Per module: how much of the delta lies outside the mask.

    `outside` is `||(1-M) * D||_F / ||D||_F`, summed in float64; 0 means that merging is exact.
    """

    module: str
    norm: float
    outside: float
    density: float  # of the base
    new_nonzeros: int  # positions outside the mask where the delta is not zero


class MergePolicyNeeded(UsageError):
    """`merge-policy-needed`, with the share of every module so that a caller can print them."""

    def __init__(self, found: str, shares: Sequence[DeltaShare]) -> None:
        super().__init__("merge-policy-needed", found, expected="a policy named by --on-merge")
        self.shares = tuple(shares)


@dataclass(frozen=True)
class ModuleFacts:
    """What a policy may know of one module before it merges the first row."""

    module: str
    pattern: Pattern  # of the base's weight
    # `X^T X` of the module's inputs `X [tokens, in]`, float32 `[in, in]`, mapped from disk; None
    # without calibration.
    gram: Callable[[], F32] | None = None


class RowMerge(Protocol):
    """Merging for one module, row by row: no row of the result depends on another."""

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """Rows of the merged weight, float32, `[r, in]` all three; zeros are +0.0.

        `kept` is None where the base is dense. `weight` is fresh and may be overwritten.
        """
        ...


class MaskMove(RowMerge, Protocol):
    """Merging under a mask that is chosen anew."""

    def select(self, weight: F32, kept: Bools, delta: F32) -> Bools:
        """Rows of the new mask, bool `[r, in]`; as many are kept as before."""
        ...


class MergePolicy(Protocol):
    """One way to put a delta into a weight. One file a policy under `exporter/merge/`."""

    name: ClassVar[str]
    keeps_mask: ClassVar[bool]  # zeros of the base stay zeros
    moves_mask: ClassVar[bool]  # as many zeros, in other places; `bind` gives a `MaskMove`
    keeps_branch: ClassVar[bool]  # the delta is not merged but stays in the graph
    # What the delta has outside the mask is dropped: one that depends on its weight is told so.
    drops_outside: ClassVar[bool]
    # A row costs far more to merge than to read: all are merged once, into a file. Such a policy
    # needs the Gram matrices.
    solves: ClassVar[bool]
    cost: ClassVar[str]  # one line for the refusal table

    def bind(self, facts: ModuleFacts) -> RowMerge:
        """The merge of one module.

        Raises:
            UsageError: `calibration-needed` where the policy needs the Gram matrix.
        """
        ...


class Elementwise:
    """What policies share that take each element for itself and need no state."""

    moves_mask: ClassVar[bool] = False
    solves: ClassVar[bool] = False
