"""Re-read a written folder by the safetensors library, which shares no line with our writer.

Folders may come from strangers (`sparse-export verify`), so every name is checked before a file
is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from exporter.arch.spec import artefact_spec
from exporter.contract import StoredTensor
from exporter.errors import InputRefused, VerificationFailed
from exporter.store.dtypes import F32
from exporter.store.jsonio import read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ITEMS = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I64": 8}
_BLOCK = 4 << 20


def read_back(folder: Path) -> Iterator[StoredTensor]:
    """Every tensor of every file, file by file; of Conv1D linears the transpose.

    Raises:
        VerificationFailed: `verify-structure` for a file that is missing, malformed or a link,
            or an index that does not name what its shards hold.
    """
    try:
        config = read_json(folder / "config.json")
        spec = artefact_spec(config)
        named = _weight_map(folder)
    except InputRefused as error:
        raise VerificationFailed("verify-structure", error.found, file=error.file) from error
    transposed = {linear.weight for linear in spec.linears() if linear.transposed}
    files = sorted(set(named.values())) if named is not None else [_SINGLE]
    for file in files:
        found = _tensors(folder, file, transposed)
        if named is not None and {t.name for t in found} != {n for n in named if named[n] == file}:
            raise _broken(file, "its tensors are not those that the index names")
        yield from found


def _weight_map(folder: Path) -> dict[str, str] | None:
    if not (folder / _INDEX).exists():
        return None
    raw: Any = read_json(folder / _INDEX)
    named: Any = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(named, dict) or not named:
        raise _broken(_INDEX, "it has no weight_map")
    for file in cast("dict[str, Any]", named).values():
        plain = isinstance(file, str) and Path(file).name == file and "\\" not in file
        if not plain or not file.endswith(".safetensors"):
            raise _broken(_INDEX, f"it names {file!r:.80}, no plain file name")
    return cast("dict[str, str]", named)


def _tensors(folder: Path, file: str, transposed: set[str]) -> list[StoredTensor]:
    path = folder / file
    if path.is_symlink() or not path.is_file():
        raise _broken(file, "it is no plain file")
    found: list[StoredTensor] = []
    try:
        with safe_open(path, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part = opened.get_slice(name)
                dtype, shape = part.get_dtype(), tuple(part.get_shape())
                found.append(_Stored(path, name, dtype, shape, name in transposed).stored())
    except (SafetensorError, OSError) as error:
        raise _broken(file, str(error)[:500]) from error
    return found


@dataclass(frozen=True)
class _Stored:
    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]  # as stored
    transposed: bool

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1]` of `[out, in]`."""
        with safe_open(self.path, framework="numpy") as opened:
            part: Any = opened.get_slice(self.name)
            block = part[:, r0:r1].T if self.transposed else part[r0:r1]
            return np.ascontiguousarray(block.astype(np.float32))

    def sha256(self) -> str:
        """Of the stored bytes."""
        digest = hashlib.sha256()
        item = _ITEMS.get(self.dtype, 8)
        step = max(1, _BLOCK // max(1, item * prod(self.shape[1:])))
        with safe_open(self.path, framework="numpy") as opened:
            part: Any = opened.get_slice(self.name)
            for r0 in range(0, self.shape[0], step):
                block = np.ascontiguousarray(part[r0 : min(r0 + step, self.shape[0])])
                digest.update(block.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def stored(self) -> StoredTensor:
        if not self.shape:
            raise _broken(self.path.name, f"{self.name} is a scalar")
        shape = self.shape[::-1] if self.transposed else self.shape
        nbytes = prod(self.shape) * _ITEMS.get(self.dtype, 8)
        return StoredTensor(
            self.name, shape, self.dtype, self.path.name, nbytes, self.rows, self.sha256
        )


def _broken(file: str, found: str) -> VerificationFailed:
    return VerificationFailed("verify-structure", found, expected="a whole model", file=file)
