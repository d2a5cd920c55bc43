"""S2FT: dense deltas on a few rows or columns of each linear.

Source: S2FT (NeurIPS 2024, arXiv 2412.06289), public code s2ft/s2.py (`S2ColumnLinear`,
`S2RowLinear`, `fuse_s2_weight`): `W[:, idx] += s V` or `W[idx, :] += s V`. The public code keeps
no index; this format does, in the base's own order. Format: docs/formats/s2ft.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter, BaseIdentity, Delta, Replacement
from exporter.adapters.identity import base_facts
from exporter.adapters.own_files import (
    OwnFolder,
    linear_shapes,
    open_own,
    require_parts,
    require_same_modules,
    require_shape,
    write_own,
)
from exporter.adapters.peft_files import validated
from exporter.adapters.s2ft_config import S2FT_CONFIG, Kind, S2ftConfig, read_s2ft_config
from exporter.adapters.s2ft_delta import ColumnsDelta, Index, RowsDelta
from exporter.adapters.tensors import largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32, DType

INDEX, VALUES, BIAS = "s2_index", "s2_delta", "s2_bias"
_FLOAT32_MAX = 3.4e38


class S2ftFamily:
    """Reads an S2FT adapter."""

    name: ClassVar[str] = "s2ft"

    def claims(self, folder: Path) -> bool:
        """Whether the folder has an s2ft_config.json."""
        return (folder / S2FT_CONFIG).exists()

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Read strictly; every tensor of the file is used exactly once.

        Raises:
            InputRefused: the `adapter-*` codes, `value-not-finite`, `value-overflow`, and those
                of the file formats.
        """
        config = read_s2ft_config(folder)
        opened = open_own(folder, S2FT_CONFIG, (INDEX, VALUES, BIAS))
        shapes = linear_shapes(opened, spec)
        require_same_modules(config.kinds, opened, "kinds")
        deltas, sizes, nonzero = _deltas(config, shapes, opened)
        biases = tuple(_bias(m, config, spec, opened) for m, p in opened.parts.items() if BIAS in p)
        if not nonzero and not biases:
            raise InputRefused(
                "adapter-empty",
                f"the delta of all {len(deltas)} modules is zero",
                expected="a trained adapter",
                file=opened.file,
            )
        named = base_facts(config.base, config.base_sha256, base, opened.config_file)
        return Adapter(
            family=self.name,
            name=folder.name or folder.resolve().name,
            deltas=deltas,
            replacements=biases,
            tensors_used=sum(len(p) for p in opened.parts.values()),
            facts={**named, **_facts(config, sizes, nonzero)},
        )


def _deltas(
    config: S2ftConfig, shapes: Mapping[str, tuple[int, int]], opened: OwnFolder
) -> tuple[dict[str, Delta], list[int], int]:
    """Deltas by module, sizes of the index sets, and how many deltas are other than zero."""

    @lru_cache(maxsize=4)
    def index_of(module: str) -> Index:
        return opened.tensors.raw(opened.parts[module][INDEX]).astype(np.int64)

    deltas: dict[str, Delta] = {}
    sizes: list[int] = []
    nonzero = 0
    for module, kind in sorted(config.kinds.items()):
        require_parts(opened, module, (INDEX, VALUES))
        parts, shape = opened.parts[module], shapes[module]
        _check_index(module, shape[1 if kind == "cols" else 0], opened)
        count = len(index_of(module))
        want = (shape[0], count) if kind == "cols" else (count, shape[1])
        axes = "[out, k]" if kind == "cols" else "[k, in]"
        require_shape(opened.tensors, parts[VALUES], want, f"{axes} of kind {kind!r}")
        nonzero += _moves(parts[VALUES], config.scaling, opened)
        made = ColumnsDelta if kind == "cols" else RowsDelta
        values = opened.tensors.rows(parts[VALUES])
        deltas[module] = made(shape, partial(index_of, module), values, config.scaling)
        sizes.append(count)
    return deltas, sizes, nonzero


def _check_index(module: str, size: int, opened: OwnFolder) -> None:
    """int32 `[k]`, rising and in range: an index out of order would shuffle the deltas."""
    name = opened.parts[module][INDEX]
    entry = opened.tensors.entries[name]
    found = None
    if entry.dtype not in (DType.I32, DType.I64) or len(entry.shape) != 1 or not entry.shape[0]:
        found = f"{entry.dtype.value} {list(entry.shape)}"
    else:
        index = opened.tensors.raw(name).astype(np.int64)
        if index.min() < 0 or index.max() >= size:
            found = f"indices from {index.min()} to {index.max()} for {size} positions"
        elif np.any(np.diff(index) <= 0):
            at = int(np.argmax(np.diff(index) <= 0))
            found = f"{index[at + 1]} after {index[at]}: not sorted, or one twice"
    if found:
        raise InputRefused(
            "adapter-invalid",
            found,
            expected=f"int32 [k], rising, from 0 to {size - 1}",
            file=opened.file,
            tensor=name,
        )


def _moves(name: str, scaling: float, opened: OwnFolder) -> bool:
    top = abs(scaling) * largest_magnitude(opened.tensors, name)
    if top > _FLOAT32_MAX:
        raise InputRefused(
            "value-overflow",
            f"scaling * delta reaches {top:.3g}",
            expected="values that fit float32",
            file=opened.file,
            tensor=name,
        )
    return top > 0.0


def _bias(module: str, config: S2ftConfig, spec: ModelSpec, opened: OwnFolder) -> Replacement:
    """`b += s * s2_bias`."""
    name = opened.parts[module][BIAS]
    want = spec.tensors().get(f"{module}.bias")
    if want is None:
        raise InputRefused(
            "adapter-module",
            "the base's linear has no bias",
            expected="a linear with a bias",
            file=opened.file,
            tensor=name,
        )
    require_shape(opened.tensors, name, want, "[out]")
    _moves(name, config.scaling, opened)
    rows, scale = opened.tensors.rows(name), np.float32(config.scaling)
    return Replacement(f"{module}.bias", want, lambda r0, r1: rows(r0, r1) * scale, "add", BIAS)


def _facts(config: S2ftConfig, sizes: list[int], nonzero: int) -> dict[str, Any]:
    made = {"ratios": config.ratios, "strategy": config.strategy, "seed": config.seed}
    return {
        "scale": config.scaling,
        "index_sizes": [min(sizes), max(sizes)],
        "zero_deltas": len(sizes) - nonzero,
        "made_with": {k: v for k, v in made.items() if v is not None},
    }


def write_s2ft(
    folder: Path,
    deltas: Mapping[str, tuple[Kind, Sequence[int], F32]],
    *,
    biases: Mapping[str, F32] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write an S2FT adapter into `folder`, which is made and must be empty.

    Args:
        folder: the adapter.
        deltas: module -> kind, rising index, V (`[out, k]` for cols, `[k, in]` for rows).
        biases: module -> what is added to its bias.
        facts: further fields of `S2ftConfig`: base, base_sha256, scaling, ratios, seed, ...

    Raises:
        UsageError: `output-exists`.
        InputRefused: `adapter-invalid`, `output-failed`.
    """
    kinds = {m: kind for m, (kind, _, _) in sorted(deltas.items())}
    raw = {**(facts or {}), "method": "s2ft", "kinds": kinds}
    config = validated(S2ftConfig, raw, S2FT_CONFIG)
    tensors: dict[str, Any] = {}
    for module, (_, index, values) in deltas.items():
        tensors[f"{module}.{INDEX}"] = np.asarray(index, np.int32)
        tensors[f"{module}.{VALUES}"] = values
    tensors |= {f"{m}.{BIAS}": b for m, b in (biases or {}).items()}
    write_own(folder, S2FT_CONFIG, config.model_dump(exclude_none=True), tensors)
