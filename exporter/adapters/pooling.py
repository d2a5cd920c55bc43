"""Pooling adapters: inputs are pooled in groups, multiplied by a small G, and expanded again.

Source: the adapter of "Mitigating Gradient Interference for Efficient Sparse Fine-Tuning of
LLMs" (OpenReview 53MDeiZ9mC), with the group rules of MoRA (arXiv 2405.12130):
`W'_ij = W_ij + M_ij C[a(i), b(j)]`, `C_ab = s G^_ab / w_b`, w the group's size (mean) or 1 (sum).
Format: docs/formats/pooling.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

from exporter.adapters.base import Adapter, BaseBound, BaseIdentity, Delta
from exporter.adapters.identity import base_facts
from exporter.adapters.losa_files import open_masks
from exporter.adapters.own_files import (
    linear_shapes,
    open_own,
    require_same_modules,
    write_own,
)
from exporter.adapters.peft_files import validated
from exporter.adapters.pool_config import POOL_CONFIG, PoolConfig, read_pool_config
from exporter.adapters.pool_delta import MaskedPoolDelta, PoolDelta
from exporter.adapters.pool_groups import Ints
from exporter.adapters.pool_table import GAMMA, TABLE, G, Table, check_values, open_table
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.sparsity.mask import Mask
from exporter.store.dtypes import F32
from exporter.store.masks import write_masks

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
        tables = {m: open_table(m, shapes[m], config, opened) for m in opened.parts}
        moves = {m: check_values(t) for m, t in tables.items()}
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


def _facts(config: PoolConfig, tables: Mapping[str, Table]) -> dict[str, Any]:
    return {
        "sizes": [list(c) for c in sorted({t.counts for t in tables.values()})],
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
