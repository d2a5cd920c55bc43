"""How the rows and columns of several S2FT adapters meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.adapters.base import Adapter
from exporter.adapters.s2ft_config import Kind
from exporter.adapters.s2ft_delta import ColumnsDelta, RowsDelta


@dataclass(frozen=True)
class Overlap:
    """How the index sets of several S2FT adapters meet on one module."""

    kinds: tuple[Kind, ...]  # of each adapter that has the module, in the order given
    sizes: tuple[int, ...]  # of their index sets
    shared: int  # indices that more than one of them chose (0 between rows and columns)
    elements: int  # of the weight that more than one of them may change


def overlap(adapters: Sequence[Adapter]) -> dict[str, Overlap]:
    """Overlap by module, of the modules that two or more S2FT adapters of `adapters` have.

    Disjoint sets add without interference (S2FT, section on fusing adapters).
    """
    found: dict[str, list[ColumnsDelta | RowsDelta]] = {}
    for adapter in adapters:
        for module, delta in adapter.deltas.items():
            if isinstance(delta, (ColumnsDelta, RowsDelta)):
                found.setdefault(module, []).append(delta)
    return {m: _overlap(d) for m, d in sorted(found.items()) if len(d) > 1}


def _overlap(deltas: Sequence[ColumnsDelta | RowsDelta]) -> Overlap:
    out, width = deltas[0].shape
    columns, rows = np.zeros(width, np.int64), np.zeros(out, np.int64)  # how often each is chosen
    for delta in deltas:
        (columns if isinstance(delta, ColumnsDelta) else rows)[delta.index()] += 1
    # An element is touched rows[i] + columns[j] times.
    r0, r1 = int(np.count_nonzero(rows == 0)), int(np.count_nonzero(rows == 1))
    c0, c1 = int(np.count_nonzero(columns == 0)), int(np.count_nonzero(columns == 1))
    return Overlap(
        kinds=tuple("cols" if isinstance(d, ColumnsDelta) else "rows" for d in deltas),
        sizes=tuple(len(d.index()) for d in deltas),
        shared=int(np.count_nonzero(columns > 1) + np.count_nonzero(rows > 1)),
        elements=out * width - r0 * c0 - r0 * c1 - r1 * c0,
    )
