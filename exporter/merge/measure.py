"""Figures of a merge for the report: norms, what was lost, changed, or swallowed by rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporter.adapters.tiles import tiles, zero_outside
from exporter.contract import Progress
from exporter.errors import InputRefused
from exporter.merge.rows import MergedRows
from exporter.merge.shares import square_sum
from exporter.model import FusedModel, FusedTensor
from exporter.sparsity.mask import Bools, Mask
from exporter.store.dtypes import F32, DType


@dataclass(frozen=True)
class ModuleFigures:
    """One merged module. `vanished` counts elements that the merge changed in float32 and left as
    they were after rounding to the output's type; None where no type was given.
    """

    policy: str
    norm: float  # Frobenius, of the delta as the adapter gives it
    norm_lost: float  # of `W' - (W + D)`: what was dropped, and what a solve put in its place
    changed: int  # elements where the merged delta is not zero
    vanished: int | None
    moved: int = 0  # positions kept now and not before; as many are pruned instead


def measure(
    fused: FusedModel,
    dtypes: Mapping[str, DType] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """`ModuleFigures` as plain values, by module; reads every delta once, and every merged weight
    too whose tensor has a type in `dtypes`.

    Raises:
        InputRefused: `adapter-empty` where there are deltas and none changes an element.
    """
    merged = [(t, t.rows) for t in fused.tensors.values() if isinstance(t.rows, MergedRows)]
    figures: dict[str, dict[str, Any]] = {}
    for done, (tensor, rows) in enumerate(merged):
        figures[rows.delta.module] = asdict(_one(tensor, rows, (dtypes or {}).get(tensor.name)))
        if progress is not None:
            progress("measure the merge", done + 1, len(merged))
    if figures and not fused.branches and not any(f["changed"] for f in figures.values()):
        raise InputRefused(
            "adapter-empty",
            f"no element of {len(figures)} modules changes under the policy",
            expected="a delta on kept weights",
        )
    return figures


def _one(tensor: FusedTensor, rows: MergedRows, dtype: DType | None) -> ModuleFigures:
    if rows.policy.moves_mask or rows.policy.solves:
        return _of_result(tensor, rows, dtype)
    mask = rows.masks.mask(rows.delta.module) if rows.policy.keeps_mask else None
    total = lost = 0.0
    changed = vanished = 0
    for r0, r1 in tiles(0, tensor.shape[0]):
        block = rows.delta.rows(r0, r1)
        total += square_sum(block)
        moved = block != 0
        kept = None if mask is None else mask.rows(r0, r1)
        if kept is not None:
            moved &= kept
        changed += int(np.count_nonzero(moved))
        if dtype is not None:
            vanished += _vanished(rows, kept, block, moved, r0, dtype)
        if kept is not None:
            zero_outside(block, ~kept)  # what is left is dropped
            lost += square_sum(block)
    return ModuleFigures(
        policy=rows.policy.name,
        norm=math.sqrt(total),
        norm_lost=math.sqrt(lost),
        changed=changed,
        vanished=vanished if dtype is not None else None,
    )


def _vanished(
    rows: MergedRows, kept: Bools | None, delta: F32, moved: Bools, r0: int, dtype: DType
) -> int:
    weight = rows.base(r0, r0 + len(delta))
    before = weight.astype(dtype.numpy)
    after = rows.merge.merge(weight, kept, delta).astype(dtype.numpy)
    return int(np.count_nonzero((before == after) & moved))


def _of_result(tensor: FusedTensor, rows: MergedRows, dtype: DType | None) -> ModuleFigures:
    """The same from base and result, where no rule on the delta alone tells what became of it."""
    masks = rows.masks.mask(rows.delta.module), _mask_after(rows)
    total = lost = 0.0
    changed = vanished = moved = 0
    for r0, r1 in tiles(0, tensor.shape[0]):
        before, after, delta = rows.base(r0, r1), rows(r0, r1), rows.delta.rows(r0, r1)
        total += square_sum(delta)
        lost += square_sum(after - before - delta)
        differs = before != after
        changed += int(np.count_nonzero(differs))
        if dtype is not None:
            same = before.astype(dtype.numpy) == after.astype(dtype.numpy)
            vanished += int(np.count_nonzero(same & differs))
        old, new = (None if m is None else m.rows(r0, r1) for m in masks)
        if old is not None and new is not None:
            moved += int(np.count_nonzero(new & ~old))
    return ModuleFigures(
        policy=rows.policy.name,
        norm=math.sqrt(total),
        norm_lost=math.sqrt(lost),
        changed=changed,
        vanished=vanished if dtype is not None else None,
        moved=moved,
    )


def _mask_after(rows: MergedRows) -> Mask | None:
    return rows.new_mask() if rows.policy.moves_mask else None
