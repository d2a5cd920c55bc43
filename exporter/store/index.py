"""The shard index of a sharded checkpoint (format: transformers' `*.safetensors.index.json`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from exporter.errors import InputRefused
from exporter.limits import LIMITS, Limits
from exporter.store.header import Header, check_tensor_name
from exporter.store.jsonio import read_json

INDEX = "model.safetensors.index.json"
_SUFFIX = ".safetensors"
_NAME_BYTES = 255  # what file systems take


@dataclass(frozen=True)
class Index:
    """Which shard holds which tensor, as the index claims."""

    weight_map: Mapping[str, str]  # tensor -> plain file name
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """File names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


def read_index(path: Path, limits: Limits = LIMITS) -> Index:
    """Read an index; shard names are plain file names before anything is joined to a path.

    Raises:
        InputRefused: `index-invalid`, `escape`, `limit-exceeded`, and those of `read_json`.
    """
    value = read_json(path, limits)
    if not isinstance(value, dict):
        _invalid("not an object", path)
    top = cast("dict[str, Any]", value)
    raw = top.get("weight_map")
    if not isinstance(raw, dict) or not raw:
        _invalid("weight_map is missing, empty or no object", path)
    weight_map = cast("dict[str, Any]", raw)
    if len(weight_map) > limits.tensors:
        _over(f"{len(weight_map)} tensors", limits.tensors, path)
    for tensor, shard in weight_map.items():
        check_tensor_name(tensor, path.name, limits)
        _check_shard_name(shard, tensor, path)
    index = Index(cast("dict[str, str]", raw), _total_size(top.get("metadata"), path))
    if len(index.shards) > limits.shards:
        _over(f"{len(index.shards)} shards", limits.shards, path)
    return index


def check_index(index: Index, headers: Mapping[str, Header], path: Path) -> None:
    """The index and the headers of its shards name the same tensors in the same places.

    Raises:
        InputRefused: `tensor-duplicate`, `index-mismatch`.
    """
    held: dict[str, str] = {}
    for shard, header in headers.items():
        for tensor in header.entries:
            if tensor in held:
                found = f"also in {held[tensor]}"
                raise InputRefused("tensor-duplicate", found, file=shard, tensor=tensor)
            held[tensor] = shard
    for tensor in sorted(held.keys() | index.weight_map.keys()):
        claimed, real = index.weight_map.get(tensor), held.get(tensor)
        if claimed != real:
            raise InputRefused(
                "index-mismatch",
                f"the index says {claimed or 'nothing'}, it lies in {real or 'no shard'}",
                file=path.name,
                tensor=tensor,
            )
    _check_total(index, headers.values(), path)


def _check_total(index: Index, headers: Iterable[Header], path: Path) -> None:
    """total_size is the bytes of all tensors (transformers) or of all files (older mlx-lm)."""
    if index.total_size is None:
        return
    headers = list(headers)
    tensors = sum(e.nbytes for h in headers for e in h.entries.values())
    if index.total_size not in (tensors, sum(h.nbytes for h in headers)):
        raise InputRefused(
            "index-mismatch",
            f"total_size {index.total_size}",
            expected=f"{tensors}, the bytes of all tensors",
            file=path.name,
        )


def _total_size(metadata: Any, path: Path) -> int | None:
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        _invalid("metadata is no object", path)
    total = cast("dict[str, Any]", metadata).get("total_size")
    if total is None:
        return None
    # Some versions of transformers wrote the count as 16060522496.0.
    if isinstance(total, bool) or not isinstance(total, (int, float)) or total != int(total):
        _invalid("total_size is no count", path)
    return int(total)


def _check_shard_name(shard: Any, tensor: str, path: Path) -> None:
    if not isinstance(shard, str):
        _invalid(f"the shard of {tensor[:80]} is no text", path)
    if "/" in shard or "\\" in shard or shard in ("..", "."):
        found = f"shard name {shard[:200]!r}"
        raise InputRefused("escape", found, expected="a plain file name", file=path.name)
    plain = shard.isprintable() and shard.endswith(_SUFFIX) and len(shard) > len(_SUFFIX)
    if not plain or len(shard.encode()) > _NAME_BYTES:
        _invalid(f"shard name {shard[:200]!r}", path)


def _invalid(found: str, path: Path) -> NoReturn:
    raise InputRefused("index-invalid", found, file=path.name)


def _over(found: str, limit: int, path: Path) -> NoReturn:
    raise InputRefused("limit-exceeded", found, expected=f"at most {limit}", file=path.name)
