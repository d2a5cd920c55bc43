"""Re-read a `sparse-24-bitmask` folder: every weight decoded again from the stored bytes.

On the reader of plain folders (the safetensors library), and `decode`; neither shares a line with
the writer. Folders may come from strangers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from backends.hf.read_back import read_back as read_plain
from backends.vllm.legacy.check import Checker
from backends.vllm.legacy.decode import decode_bitmask
from exporter.contract import Packing, StoredTensor
from exporter.errors import InputRefused, VerificationFailed
from exporter.store.dtypes import F32

_PARTS = ("compressed", "bitmask", "shape")
_VALUES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


def read_back(folder: Path) -> Iterator[StoredTensor]:
    """Every tensor of the model that the folder holds; linears as `P.weight`, decoded.

    Rows are checked when they are read.

    Raises:
        VerificationFailed: `verify-structure` for a folder that is no whole model, and a linear
            that lacks a part.
    """
    parts: dict[str, dict[str, StoredTensor]] = {}
    for stored in read_plain(folder):
        module, _, part = stored.name.rpartition(".")
        if part not in _PARTS:
            yield stored
            continue
        found = parts.setdefault(module, {})
        found[part] = stored
        if len(found) == len(_PARTS):
            yield _weight(module, parts.pop(module))
    for module, found in parts.items():
        lacks = ", ".join(p for p in _PARTS if p not in found)
        raise VerificationFailed("verify-structure", f"it lacks {lacks}", tensor=module)


def _weight(module: str, parts: Mapping[str, StoredTensor]) -> StoredTensor:
    linear = _Linear(module, parts["compressed"], parts["bitmask"], parts["shape"])
    values = parts["compressed"]
    # No mask to compare with the model's: the bits follow the values, and one that is kept and
    # zero has none. The values say all.
    kind = _VALUES.get(values.dtype, values.dtype)
    packing = Packing("2:4", kind, plus_zero=True)
    return replace(
        values,
        name=f"{module}.weight",
        shape=linear.size(),
        nbytes=values.nbytes + linear.bitmask.nbytes + linear.shape.nbytes,
        rows=linear.rows,
        sha256=linear.sha256,
        packing=packing,
    )


@dataclass(frozen=True)
class _Linear:
    module: str
    compressed: StoredTensor
    bitmask: StoredTensor
    shape: StoredTensor

    def size(self) -> tuple[int, int]:
        """As `shape` says; float32 rows hold these exactly up to 2^24, and more is no match."""
        if (self.shape.dtype, self.bitmask.dtype) != ("I64", "U8"):
            found = f"shape is {self.shape.dtype}, bitmask {self.bitmask.dtype}"
            raise VerificationFailed("verify-structure", found, tensor=self.module)
        check = Checker(self.module, self.shape.file)
        try:
            raw = self.shape.rows(0, self.shape.shape[0]).astype(np.int64)
            size = check.shape(raw)
            check.parts(size, self.compressed.shape, self.bitmask.shape, None)
        except InputRefused as error:
            raise _broken(error) from error
        return size

    def rows(self, r0: int, r1: int) -> F32:
        """Rows `[r0:r1)`, decoded."""
        bitmask = self.bitmask.rows(r0, r1).astype(np.uint8)
        values = self.compressed.rows(r0, r1)
        size = np.array([len(values), self.size()[1]], np.int64)
        try:
            dense = decode_bitmask(
                values, bitmask, size, module=self.module, file=self.compressed.file, row=r0
            )
        except InputRefused as error:
            raise _broken(error) from error
        return np.asarray(dense, np.float32)

    def sha256(self) -> str:
        """Over the digests of the parts."""
        whole = hashlib.sha256()
        for part in (self.compressed, self.bitmask, self.shape):
            whole.update(part.sha256().encode())
        return whole.hexdigest()


def _broken(error: InputRefused) -> VerificationFailed:
    return VerificationFailed(
        "verify-structure",
        error.found,
        expected=error.expected,
        file=error.file,
        tensor=error.tensor,
    )
