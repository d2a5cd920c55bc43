"""Whole checkpoints of the public S2FT code, whose channels stand in another order.

Given the order (s2ft_order.json), every tensor is read back in the base's order, and the adapter
is the difference: `W_base_order = W_perm[inverse]` for rows, `W_perm[:, inverse]` for columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.difference import Readers, difference, stored
from exporter.adapters.full import fine_tune, open_fine_tune
from exporter.adapters.peft_files import label
from exporter.adapters.s2ft_order import S2FT_ORDER, Axes, read_order
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.model import RowReader
from exporter.sparsity.permute import Order, inverse, permute_columns, permuted_rows

# Rounding of a whole model to bfloat16 moves a weight by 0.4 %; another channel's weights differ
# by their own size.
_STRANGE = 0.5
_LOOKED_AT = 256  # rows


class S2ftPermutedFamily:
    """Reads a permuted checkpoint that has its order beside it."""

    name: ClassVar[str] = "s2ft-permuted"

    def claims(self, folder: Path) -> bool:
        """Whether the folder has an s2ft_order.json."""
        return (folder / S2FT_ORDER).exists()

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Undo the order and compare with the base.

        Raises:
            InputRefused: `permutation-invalid`, `adapter-base` where the order is not that of the
                checkpoint, and those of `FullFamily.read`.
        """
        orders, axes = read_order(folder, spec)
        other = open_fine_tune(folder, spec)
        readers = unpermuted(stored(other.checkpoint), axes, spec)
        _check_frozen(spec, base, readers, label(folder, S2FT_ORDER))
        found = difference(other, spec, base, readers)
        moved = sum(a.ffn is not None or a.query is not None for a in axes)
        facts = {"layers_permuted": moved}
        return fine_tune(self.name, folder, other, found, base, orders.base_sha256, facts)


def unpermuted(readers: Readers, axes: Sequence[Axes], spec: ModelSpec) -> Readers:
    """Readers of the same tensors in the base's order.

    Biases of q, k, v, gate and up move with their rows; those of o and down do not move.
    """
    undone: dict[str, tuple[Order | None, Order | None]] = {}
    for linear in spec.linears():
        rows, columns = axes[linear.layer].of(linear.role)
        undone[linear.weight] = (_undo(rows), _undo(columns))
        undone[f"{linear.module}.bias"] = (_undo(rows), None)

    def reader(name: str) -> RowReader:
        rows, columns = undone.get(name, (None, None))
        return _moved(readers(name), rows, columns)

    return reader


def _undo(order: Order | None) -> Order | None:
    return None if order is None else inverse(order)


def _moved(read: RowReader, rows: Order | None, columns: Order | None) -> RowReader:
    if rows is not None:
        read = permuted_rows(read, rows)
    if columns is None:
        return read
    return lambda r0, r1: permute_columns(read(r0, r1), columns)


def _check_frozen(spec: ModelSpec, base: BaseIdentity, readers: Readers, file: str) -> None:
    """q, k and gate, which S2FT's code never trains, are the base's own but for rounding.

    Raises:
        InputRefused: `adapter-base`.
    """
    if base.rows is None:
        return
    for linear in spec.linears():
        if linear.role not in ("q", "k", "gate"):
            continue
        end = min(_LOOKED_AT, linear.out_features)
        want = base.rows(linear.weight)(0, end).astype(np.float64)
        apart = np.linalg.norm(readers(linear.weight)(0, end) - want)
        if apart > _STRANGE * np.linalg.norm(want):
            raise InputRefused(
                "adapter-base",
                f"after undoing the order, a linear that S2FT never trains differs from the base "
                f"by {apart / max(float(np.linalg.norm(want)), 1e-30):.0%} of its norm",
                expected="the base's own rows",
                file=file,
                tensor=linear.module,
                hint="Give the order that was saved with this very checkpoint, and its base.",
            )
