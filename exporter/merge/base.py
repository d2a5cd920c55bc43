"""The contract of a merge policy: (W, M, delta) -> W', row block by row block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from exporter.errors import UsageError
from exporter.sparsity.mask import Bools
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


class MergePolicy(Protocol):
    """One way to put a delta into a weight. One file a policy under `exporter/merge/`."""

    name: ClassVar[str]
    keeps_mask: ClassVar[bool]  # zeros of the base stay zeros
    keeps_branch: ClassVar[bool]  # the delta is not merged but stays in the graph
    cost: ClassVar[str]  # one line for the refusal table

    def merge(self, weight: F32, kept: Bools | None, delta: F32) -> F32:
        """Rows of the merged weight, float32, `[r, in]` all three; zeros are +0.0.

        `kept` is None where the base is dense. `weight` is fresh and may be overwritten.
        """
        ...
