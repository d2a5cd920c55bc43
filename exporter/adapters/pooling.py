"""Pooling adapters: inputs are pooled in groups, multiplied by a small G, and expanded again.

Source: the adapter of "Mitigating Gradient Interference for Efficient Sparse Fine-Tuning of
LLMs" (OpenReview 53MDeiZ9mC), with the group rules of MoRA (arXiv 2405.12130):
`W'_ij = W_ij + M_ij C[a(i), b(j)]`, `C_ab = s G^_ab / w_b`, w the group's size (mean) or 1 (sum).
Format: docs/formats/pooling.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseBound, BaseIdentity, Delta
from exporter.adapters.identity import base_facts
from exporter.adapters.losa_files import open_masks
from exporter.adapters.own_files import (
    OwnFolder,
    linear_shapes,
    open_own,
    require_same_modules,
    require_shape,
    write_own,
)
from exporter.adapters.peft_files import validated
from exporter.adapters.pool_config import POOL_CONFIG, PoolConfig, read_pool_config
from exporter.adapters.pool_delta import MaskedPoolDelta, PoolDelta
from exporter.adapters.pool_groups import Ints, group_sizes
from exporter.adapters.pool_norm import NEEDS_GAMMA, gamma_shape, normalise
from exporter.adapters.tensors import largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from exporter.store.masks import write_masks

G, GAMMA, TABLE = "pool_G", "pool_gamma", "pool_C"
MASK_FILE = "pool_mask.safetensors"  # not LoSA's name, by which a bundle is known


class PoolingFamily:
    """Reads a pooling adapter."""

    name: ClassVar[str] = "pooling"

    def claims(self, folder: Path) -> bool:
        """Whether the folder has a pool_config.json."""
        return (folder / POOL_CONFIG).exists()

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes, `value-not-finite`, `value-overflow`,
                `mask-invalid`, and those of the file formats.
        """
        config = read_pool_config(folder)
        opened = open_own(folder, POOL_CONFIG, (G, GAMMA, TABLE))
        shapes = linear_shapes(opened, spec)
        if config.sizes:
            require_same_modules(config.sizes, opened, "sizes")
        tables = {m: _table(m, shapes[m], config, opened) for m in opened.parts}
        moves = {m: _check_values(t) for m, t in tables.items()}
        if not any(moves.values()):
            raise InputRefused(
                "adapter-empty",
                f"the table of all {len(tables)} modules is zero",
                expected="a trained adapter",
                file=opened.file,
            )
        masks = None
        if config.mask is not None:
            masks = open_masks(folder, config.mask, opened.parts, shapes)
        named = base_facts(config.base, config.base_sha256, base, opened.config_file)
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=_deltas(tables, config),
            masks=masks,
            masked=config.masked,
            tensors_used=sum(len(p) for p in opened.parts.values()) + len(masks or ()),
            facts={**named, **_facts(config, tables)},
        )


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


def _deltas(tables: Mapping[str, Table], config: PoolConfig) -> dict[str, Delta | BaseBound]:
    """The deltas by module; the few tables in use are held, and no more."""

    @lru_cache(maxsize=4)
    def fold(module: str) -> F32:
        return tables[module].fold()

    @lru_cache(maxsize=8)
    def groups(module: str, axis: int) -> Ints:
        return tables[module].groups(axis)

    plain = {
        m: PoolDelta(t.shape, partial(fold, m), partial(groups, m, 0), partial(groups, m, 1))
        for m, t in tables.items()
    }
    return {m: MaskedPoolDelta(d) if config.masked else d for m, d in plain.items()}


def _table(module: str, shape: tuple[int, int], config: PoolConfig, opened: OwnFolder) -> Table:
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


def _check_values(table: Table) -> bool:
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


def _facts(config: PoolConfig, tables: Mapping[str, Table]) -> dict[str, Any]:
    return {
        "sizes": sorted({t.counts for t in tables.values()}),
        "pool": config.pool,
        "grouping": config.grouping,
        "norm": config.norm,
        "scale": config.scale,
        "train_mask": config.train_mask,
    }


def write_pooling(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, F32]],
    masks: Mapping[str, Mask] | None = None,
) -> None:
    """Write a pooling adapter into `folder`, which is made and must be empty.

    Args:
        folder: the adapter.
        config: fields of `PoolConfig`; `method`, `sizes` and `mask` are filled in.
        tensors: module -> `pool_G` `[gout, gin]` (with `pool_gamma` where the norm has one), or
            the folded `pool_C`.
        masks: the masks that it was trained under, to be compared with the base's.

    Raises:
        UsageError: `output-exists`.
        InputRefused: `adapter-invalid`, `output-failed`.
    """
    raw = {"method": "pool", **config}
    if raw.get("grouping") != "size":
        raw["sizes"] = {m: list(p[G if G in p else TABLE].shape) for m, p in tensors.items()}
    if masks is not None:
        raw["mask"] = MASK_FILE
    checked = validated(PoolConfig, raw, POOL_CONFIG)
    named = {f"{m}.{part}": v for m, parts in tensors.items() for part, v in parts.items()}
    write_own(folder, POOL_CONFIG, checked.model_dump(exclude_none=True), named)
    if masks is not None:
        write_masks(folder / MASK_FILE, sorted(masks.items(), key=lambda item: item[0]))
