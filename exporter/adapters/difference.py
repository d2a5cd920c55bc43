"""Another model of the same architecture, taken as its difference from the base.

Linears become deltas `V - W`; norms, biases and the embedding are replaced as whole tensors. What
equals the base counts as untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from exporter.adapters.base import BaseIdentity, Delta, KeptRows, Replacement
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.model import CheckedModel, LowRank, RowReader
from exporter.store.checkpoint import Checkpoint
from exporter.store.dtypes import F32

FINE_TUNED = "fine-tuned"
_BLOCK = 1 << 20  # elements compared at once
Readers = Callable[[str], RowReader]  # rows of a tensor by its name, in the base's order


@dataclass(frozen=True)
class FullDelta:
    """`V - W`, V the fine-tuned weight."""

    shape: tuple[int, int]
    other: RowReader

    def bind(self, base: RowReader, kept: KeptRows | None) -> Delta:
        """On one weight; no mask plays a part."""
        del kept
        return _BoundFull(self.shape, self.other, base)


@dataclass(frozen=True)
class _BoundFull:
    shape: tuple[int, int]
    other: RowReader
    base: RowReader

    def rows(self, r0: int, r1: int) -> F32:
        block = self.other(r0, r1)
        block -= self.base(r0, r1)
        return block

    def result(self, r0: int, r1: int) -> F32:
        """V itself, which `W + (V - W)` need not be in float32."""
        return self.other(r0, r1)

    def low_rank(self) -> LowRank | None:
        """None: no factors."""
        return None


@dataclass(frozen=True)
class Difference:
    """What differs from the base; `unties` as in `Adapter`."""

    deltas: Mapping[str, FullDelta]
    replacements: tuple[Replacement, ...]
    unties: bool


def stored(checkpoint: Checkpoint) -> Readers:
    """Rows of a checkpoint's tensors as they lie there."""
    return lambda name: partial(checkpoint.rows, name)


def difference(
    other: CheckedModel, spec: ModelSpec, base: BaseIdentity, readers: Readers
) -> Difference:
    """All that `other` has otherwise than the base; reads both where the base can be read.

    Args:
        other: the fine-tuned model, `check_same_model` passed.
        spec: of the base.
        base: the base; without `rows` every tensor counts as changed.
        readers: of the fine-tuned tensors, in the base's order.
    """
    shapes = {**spec.tensors(), spec.head: (spec.vocab, spec.hidden)}
    linears = {li.weight: li.module for li in spec.linears()}
    # A tied head lies in the embedding, on either side.
    mine = {n: spec.embedding if n == spec.head and spec.tied else n for n in shapes}
    theirs = {n: spec.embedding if n == spec.head and other.head_is_tied else n for n in shapes}
    changed = {
        n: readers(theirs[n])
        for n, shape in shapes.items()
        if base.rows is None or not same_rows(readers(theirs[n]), base.rows(mine[n]), shape)
    }
    unties = spec.tied and _apart(other, readers)
    if spec.tied and not unties:
        changed.pop(spec.head, None)
    return Difference(
        {m: FullDelta(_pair(shapes[n]), changed[n]) for n, m in linears.items() if n in changed},
        tuple(
            Replacement(n, shapes[n], rows, "replace", FINE_TUNED)
            for n, rows in changed.items()
            if n not in linears
        ),
        unties,
    )


def _pair(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], shape[1]


def _apart(other: CheckedModel, readers: Readers) -> bool:
    """Whether the fine-tune's head and embedding are two tensors that differ."""
    if other.head_is_tied:
        return False
    spec = other.spec
    return not same_rows(readers(spec.head), readers(spec.embedding), (spec.vocab, spec.hidden))


def same_rows(left: RowReader, right: RowReader, shape: tuple[int, ...]) -> bool:
    """Whether two tensors have equal values; ends at the first block where not."""
    width = int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _BLOCK // max(1, width))
    return all(
        np.array_equal(left(r0, min(r0 + step, shape[0])), right(r0, min(r0 + step, shape[0])))
        for r0 in range(0, shape[0], step)
    )


# May differ after fine-tuning: the tie is settled by values, a longer context changes no shape.
_FREE = ("config", "tied", "max_positions", "sliding_window")


def check_same_model(other: ModelSpec, spec: ModelSpec, file: str) -> None:
    """The fine-tuned model is of the base's architecture and size.

    Raises:
        InputRefused: `adapter-base`, naming what differs.
    """
    for name in ("family", *(k for k in vars(spec) if k not in _FREE)):
        found, want = getattr(other, name), getattr(spec, name)
        if found != want:
            raise InputRefused(
                "adapter-base",
                f"{name} is {found}",
                expected=f"{want}, as in the base",
                file=file,
                hint=_VOCAB if name == "vocab" else "Give the base that it was fine-tuned from.",
            )


_VOCAB = (
    "The fine-tune has other tokens: resize the base's embedding with transformers, save it, and "
    "prune and export that base."
)
