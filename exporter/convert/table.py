"""A pooling adapter to its table: normaliser, scale and group size folded into `pool_C`.

What an engine needs that adds a block-constant delta itself. Format: docs/formats/pooling.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from exporter.adapters.pool_config import read_pool_config
from exporter.adapters.pool_delta import MaskedPoolDelta, PoolDelta
from exporter.adapters.pool_table import TABLE
from exporter.adapters.pooling import PoolingFamily, write_pooling
from exporter.arch.model_spec import ModelSpec
from exporter.convert.base import Source, impossible
from exporter.store.dtypes import F32


class ToTable:
    """Writes a pooling adapter that holds tables alone."""

    name: ClassVar[str] = "table"

    def write(self, source: Source, spec: ModelSpec, folder: Path) -> None:
        """Fold and write; the masks, where it has them, go along.

        Raises:
            InputRefused: `conversion-impossible` for another family, `output-failed`.
        """
        del spec
        if source.adapter.family != PoolingFamily.name:
            raise impossible(
                source,
                "only pooling adapters have a table of blocks",
                "a pooling adapter",
                "Convert it with --to lora, or merge it with --adapter.",
            )
        config = read_pool_config(source.folder)
        folded = {"scale": 1.0, "norm": "none"}
        kept = config.model_dump(
            exclude_none=True, exclude={"method", "sizes", "mask", "scale", "norm", "tau"}
        )
        tensors = {m: {TABLE: _table(source, m)} for m in sorted(source.adapter.deltas)}
        write_pooling(folder, {**kept, **folded}, tensors, source.adapter.masks)


def _table(source: Source, module: str) -> F32:
    """C `[gout, gin]` of one module; the tables of a whole adapter are its parameters, no more."""
    delta = source.adapter.deltas[module]
    inner = delta.inner if isinstance(delta, MaskedPoolDelta) else delta
    if not isinstance(inner, PoolDelta):
        raise impossible(source, "a delta without a table", "tables", "Report it.", module)
    return inner.table()
