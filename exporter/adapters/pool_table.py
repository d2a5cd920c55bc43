"""One module's table of a pooling adapter: its tensors and groups checked, and folded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exporter.adapters.own_files import OwnFolder, require_shape
from exporter.adapters.pool_config import PoolConfig
from exporter.adapters.pool_groups import Ints, group_sizes
from exporter.adapters.pool_norm import NEEDS_GAMMA, gamma_shape, normalise
from exporter.adapters.tensors import largest_magnitude
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

G, GAMMA, TABLE = "pool_G", "pool_gamma", "pool_C"


@dataclass(frozen=True)
class Table:
    """The folded table of one module, computed when asked for."""

    module: str
    shape: tuple[int, int]
    counts: tuple[int, int]  # gout, gin
    config: PoolConfig
    opened: OwnFolder = field(repr=False)

    def fold(self) -> F32:
        """C `[gout, gin]`: computed in float64, rounded once."""
        parts = self.opened.parts[self.module]
        read = self.opened.tensors.float32
        if G not in parts:
            return read(parts[TABLE])()
        g = read(parts[G])().astype(np.float64)
        gamma = read(parts[GAMMA])().astype(np.float64) if GAMMA in parts else None
        config = self.config
        folded = normalise(g, config.norm, config.tau, config.eps, gamma) * config.scale
        if config.pool == "mean":
            folded = folded / group_sizes(self.groups(1), self.counts[1])
        with np.errstate(over="ignore"):
            return folded.astype(np.float32)

    def groups(self, axis: int) -> Ints:
        """a (axis 0) or b (axis 1)."""
        return self.config.groups(self.shape[axis], self.counts[axis])


def open_table(module: str, shape: tuple[int, int], config: PoolConfig, opened: OwnFolder) -> Table:
    """The table of one module, its tensors and groups checked.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-tensor-unused`, `adapter-shape`,
            `adapter-invalid`, `value-not-finite`.
    """
    counts = config.counts(module, shape)
    if counts is None:
        raise InputRefused(
            "adapter-invalid",
            "neither gin and gout nor sizes give the number of groups",
            file=opened.config_file,
            tensor=module,
        )
    _check_groups(module, shape, counts, config, opened)
    _check_parts(module, counts, config, opened)
    return Table(module, shape, counts, config, opened)


def _check_groups(
    module: str,
    shape: tuple[int, int],
    counts: tuple[int, int],
    config: PoolConfig,
    opened: OwnFolder,
) -> None:
    for size, count, axis in zip(shape, counts, ("gout", "gin"), strict=True):
        try:
            config.groups(size, count)
        except ValueError as error:
            raise InputRefused(
                "adapter-invalid",
                f"{axis}: {error}",
                expected="from 1 group to one for each position, none of them empty",
                file=opened.config_file,
                tensor=module,
                hint="With the grouping ceil, take g = ceil(d / ceil(d / g)); empty groups are "
                "columns of G that were never trained.",
            ) from error


def _check_parts(
    module: str, counts: tuple[int, int], config: PoolConfig, opened: OwnFolder
) -> None:
    parts, tensors = opened.parts[module], opened.tensors
    wanted = {G} | ({GAMMA} if config.norm in NEEDS_GAMMA else set()) if G in parts else {TABLE}
    missing, extra = wanted - parts.keys(), parts.keys() - wanted - {TABLE}
    if missing:
        raise InputRefused(
            "adapter-tensor-missing",
            f"{', '.join(sorted(parts))} without {min(missing)}",
            expected=f"{', '.join(sorted(wanted))}",
            file=opened.file,
            tensor=module,
        )
    if extra:
        raise InputRefused(
            "adapter-tensor-unused",
            f"norm {config.norm!r} has no {min(extra)}",
            file=opened.file,
            tensor=parts[min(extra)],
        )
    for part, name in parts.items():
        if part == GAMMA:
            shape = gamma_shape(config.norm, counts[0])
            require_shape(tensors, name, shape or (), "of the norm's factor")
        else:
            require_shape(tensors, name, counts, "[gout, gin]")
        largest_magnitude(tensors, name)


def check_values(table: Table) -> bool:
    """The folded table is finite, and the stored one, where there are both, equals it.

    Gives whether the table is other than zero.
    """
    parts, opened = table.opened.parts[table.module], table.opened
    folded = table.fold()
    if not np.isfinite(folded).all():
        raise InputRefused(
            "value-overflow",
            "the folded table leaves float32",
            expected="values that fit float32",
            file=opened.file,
            tensor=table.module,
        )
    if G in parts and TABLE in parts:
        stored = opened.tensors.float32(parts[TABLE])()
        if np.abs(stored - folded).max() > 1e-5 * np.abs(folded).max():
            raise InputRefused(
                "adapter-invalid",
                "the stored table is not what G, norm and scale give",
                expected=f"{TABLE} folded from {G}, or one of them alone",
                file=opened.file,
                tensor=parts[TABLE],
            )
    return bool(np.any(folded))
