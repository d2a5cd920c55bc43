"""The types of the chain: CheckedModel and FusedModel. Nothing here holds a weight.

Checkpoint -> CheckedModel -> FusedModel -> StagedArtefact -> VerifiedArtefact -> published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.arch.model_spec import Linear, ModelSpec
from exporter.sparsity.mask import Mask
from exporter.sparsity.pattern import LinearPattern
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32


class MaskSource(Protocol):
    """Gives the mask of a linear when asked; holds no more than one."""

    def mask(self, linear: Linear) -> Mask:
        """Packed mask `[out, in]`; for a mask read from zeros, `W != 0`."""
        ...

    @property
    def origin(self) -> str:
        """ "zeros" or the name of the masks file, for report and manifest."""
        ...


@dataclass(frozen=True)
class Note:
    """Something lawful that a user may want to know about one tensor."""

    tensor: str
    what: Literal[
        "negative-zeros",
        "denormals",
        "all-zero",
        "zero-rows",
        "kept-zeros",  # zeros that a masks file keeps
        "dtype-not-of-config",  # tensors stored in another type than config.json names
    ]
    count: int


@dataclass(frozen=True)
class CheckedModel:
    """Every tensor accounted for, finite, of the right shape; every linear has its verdict."""

    checkpoint: Checkpoint
    spec: ModelSpec
    patterns: Mapping[str, LinearPattern]  # by module
    masks: MaskSource
    head_is_tied: bool  # the head's tensor is the embedding's
    dropped: Mapping[str, str] = field(default_factory=dict)  # tensor -> why it is not exported
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class LowRank:
    """A branch kept apart: `y += scale * (x A^T) B^T`, A `[r, in]`, B `[out, r]`, float32."""

    a: F32
    b: F32
    scale: float


RowReader = Callable[[int, int], F32]
QuantKind = Literal["int8", "int4", "fp8"]
# int8 `[rows, in]` for int8 and int4 (-7..7), float8_e4m3fn for fp8; float32 `[rows, G]`.
CodesAndScales = tuple[NDArray[np.generic], F32]


@dataclass(frozen=True)
class Quantised:
    """A weight `[out, in]` as codes and scales, `W = code * scale` in float32, exactly.

    `scales` are finite, above 0 and exact in bfloat16; G is 1 for group 0, else
    `ceil(in / group)`, and group g scales columns `[g * group, (g + 1) * group)`. Pruned positions
    have code 0. Equal calls give equal bits.
    """

    kind: QuantKind
    group: int  # columns that share a scale; 0: the whole row
    block: Callable[[int, int], CodesAndScales]  # of rows `[r0:r1)`; cheaper than both apart

    def codes(self, r0: int, r1: int) -> NDArray[np.generic]:
        """Codes of rows `[r0:r1)`."""
        return self.block(r0, r1)[0]

    def scales(self, r0: int, r1: int) -> F32:
        """Scales of rows `[r0:r1)`."""
        return self.block(r0, r1)[1]


@dataclass(frozen=True)
class FusedTensor:
    """One tensor of the fused model, computed when asked for.

    `rows(r0, r1)` gives fresh float32 rows of axis 0: float32 merge, not yet rounded; the
    writer rounds once. `shape` and `rows` of a linear are those of `[out, in]`, whether or not
    the checkpoint stores its transpose (`linear.transposed`). Zeros outside the mask are +0.0
    exactly. Equal calls give equal bits. Where `quantised` is set, `rows` gives `code * scale`.
    """

    name: str
    shape: tuple[int, ...]
    rows: RowReader
    linear: Linear | None = None
    changed: bool = False  # an adapter touches it
    quantised: Quantised | None = None


@dataclass(frozen=True)
class FusedModel:
    """The checkpoint's tensors with the adapters in, by the same names."""

    checked: CheckedModel
    tensors: Mapping[str, FusedTensor]  # spec order: embedding, layers, norm, head (untied only)
    branches: Mapping[str, LowRank]  # module -> branch (policy `separate`), else empty
    tied: bool
    record: Mapping[str, Any]  # adapters, policy by module: goes into report.json
    densified: frozenset[str] = frozenset()  # modules whose zeros were given up
    # Modules whose zeros lie elsewhere after the merge (policy `reprune`), with their new masks.
    moved_masks: Mapping[str, Callable[[], Mask]] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.checked.spec

    def mask(self, tensor: str) -> Mask | None:
        """Kept positions of a linear after merging (None: dense or densified, or not a linear)."""
        linear = self.tensors[tensor].linear
        if linear is None or linear.module in self.densified:
            return None
        if self.checked.patterns[linear.module].pattern.kind == "dense":
            return None
        moved = self.moved_masks.get(linear.module)
        if moved is not None:
            return moved()
        return self.checked.masks.mask(linear)
