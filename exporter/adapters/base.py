"""The contract of an adapter family: read strictly, list modules, give deltas in row blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from exporter.arch.model_spec import ModelSpec
from exporter.model import LowRank, RowReader
from exporter.sparsity.mask import Bools, Mask
from exporter.store.dtypes import F32


class Delta(Protocol):
    """What an adapter adds to one weight `[out, in]`, as a producer of row blocks."""

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        ...

    def rows(self, r0: int, r1: int) -> F32:
        """Dense float32 `[r1 - r0, in]`; the block size does not change a bit."""
        ...

    def low_rank(self) -> LowRank | None:
        """The factors when the delta is `scale * B A` without a mask; None otherwise."""
        ...


KeptRows = Callable[[int, int], Bools]


class BaseBound(Protocol):
    """A delta that is a function of the weight it is added to: DoRA, SPP, IA3, a full fine-tune."""

    @property
    def shape(self) -> tuple[int, int]:
        """`[out, in]`."""
        ...

    def bind(self, base: RowReader, kept: KeptRows | None) -> Delta:
        """The delta on this base.

        Args:
            base: fresh float32 rows of the weight before merging.
            kept: rows of the mask where the merge will drop everything outside it; None where
                it will not, or where that is still to be decided.
        """
        ...


@dataclass(frozen=True)
class Replacement:
    """A tensor that the adapter replaces as a whole (`modules_to_save`) or in single rows
    (trainable tokens), adds to or scales (bias).

    Lazy, because a replaced embedding may be the largest tensor of the model.
    """

    tensor: str  # name in the base model, "lm_head.weight", "...q_proj.bias"
    shape: tuple[int, ...]
    rows: RowReader  # rows [r0:r1] of axis 0, fresh float32
    # "scale": the rows are factors of the base's own. "rows": row i replaces row `indices[i]`.
    mode: Literal["replace", "rows", "add", "scale"]
    why: str  # "modules_to_save", "saved embedding", "bias", "lora_bias", "trainable tokens"
    indices: tuple[int, ...] = ()  # distinct; with mode "rows" only


@dataclass(frozen=True)
class Adapter:
    """One adapter, read and matched: every tensor of its files used exactly once."""

    family: str  # "lora", "losa"
    name: str  # the folder's name, for reports
    deltas: Mapping[str, Delta | BaseBound]  # module (a linear, the head, the embedding) -> delta
    replacements: tuple[Replacement, ...] = ()
    masks: Mapping[str, Mask] | None = None  # the mask it was trained under (LoSA)
    # Digests of that mask, where only they are known: of each module (`Mask.sha256`), or of all
    # prunable linears of the base in one (`sparsity.agree.masks_sha256`).
    mask_sha256: Mapping[str, str] | str | None = None
    masked: bool = False  # deltas are zero by construction outside `masks`, or where the base is
    unties: bool = False  # trained with embedding and head apart, though the base ties them
    tensors_used: int = 0
    tensors_found: int = 0  # in the folder's files; `load_adapter` counts them apart
    facts: Mapping[str, Any] = field(default_factory=dict)  # rank, alpha, scaling: for the report


class AdapterFamily(Protocol):
    """One file format and its meaning. One file a family under `exporter/adapters/`."""

    name: ClassVar[str]

    def claims(self, folder: Path) -> bool:
        """Whether `folder` holds this family's files (looks at config names and types only)."""
        ...

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly.

        Raises:
            InputRefused: one of the `adapter-*` codes.
        """
        ...


@dataclass(frozen=True)
class BaseIdentity:
    """Who the base is, so that an adapter trained elsewhere is refused.

    `sha256` digests names, shapes, dtypes and bytes of the base's tensors. Computing it reads
    the whole model, so it is a call, made only for an adapter that records one.
    """

    name: str | None  # config's _name_or_path or the folder's name
    sha256: Any  # Callable[[], str]
    # Rows of a tensor of the base, as stored, by its name there; None where only the headers are
    # known. A full fine-tune is compared with it, so that what is equal counts as untouched.
    rows: Callable[[str], RowReader] | None = None
