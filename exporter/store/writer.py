"""A deterministic writer of safetensors files: equal tensors and metadata, equal bytes.

Format: safetensors README, "Format". Ours, because the library (0.8.0) writes metadata in the
order of a hash map, arrays that are not C-contiguous in memory order, and files of mode 0600.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporter.store.dtypes import DType
from exporter.store.header import check_tensor_name
from exporter.store.sink import FileRecord, RawWriter

__all__ = ["FileRecord", "Layout", "RawWriter", "SafetensorsWriter", "write_safetensors"]

Layout = Sequence[tuple[str, DType, tuple[int, ...]]]
_ALIGNMENT = 8
_DTYPES = {d.numpy: d for d in DType}


class SafetensorsWriter:
    """Writes tensors in the order of `layout`, each in one or more blocks of rows.

    Args:
        path: a file that does not exist yet.
        layout: `(name, dtype, shape)` of each tensor, in the order of their bytes.
        metadata: goes into the header, keys sorted.

    Raises:
        ValueError: a layout that cannot be a file, or blocks that do not fit it: both are
            mistakes of the calling program.
        InputRefused: `output-failed`.
    """

    def __init__(
        self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = None
    ) -> None:
        self._layout = list(layout)
        text = header_bytes(self._layout, metadata or {})
        self._at = 0  # tensor being written
        self._left = math.prod(self._layout[0][2]) if self._layout else 0  # its elements to come
        self._file = RawWriter(path)
        self._file.write(text)
        self._skip_finished()

    def write(self, name: str, block: NDArray[Any]) -> None:
        """Append rows of `name`: `[n, *shape[1:]]` in its dtype, or the whole scalar.

        Raises:
            ValueError: out of turn, or of another dtype, width or length; not C-contiguous.
            InputRefused: `output-failed`.
        """
        if block.size == 0 and any(name == known for known, _, _ in self._layout):
            return  # an empty tensor, or no rows: there is nothing to append
        if self._at >= len(self._layout):
            raise ValueError(f"{name}: every tensor of the layout is complete")
        turn, dtype, shape = self._layout[self._at]
        if name != turn:
            raise ValueError(f"{name}: it is the turn of {turn}, which lacks {self._left} elements")
        if block.dtype != dtype.numpy:
            raise ValueError(f"{name}: a block of {block.dtype}, expected {dtype.numpy}")
        if block.shape[1:] != shape[1:] or block.ndim != len(shape):
            raise ValueError(f"{name}: a block of shape {block.shape}, expected rows of {shape}")
        if block.size > self._left:
            raise ValueError(f"{name}: {block.size} elements, only {self._left} to come")
        self._file.write(block)
        self._left -= block.size
        self._skip_finished()

    def close(self) -> FileRecord:
        """Sync and close.

        Raises:
            ValueError: a tensor is not complete.
            InputRefused: `output-failed`.
        """
        if self._at < len(self._layout):
            name = self._layout[self._at][0]
            self.abort()
            raise ValueError(f"{name} lacks {self._left} elements")
        return self._file.close()

    def abort(self) -> None:
        """Drop the descriptor; the file stays, unfinished. May be called twice."""
        self._file.abort()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    def _skip_finished(self) -> None:
        while self._left == 0 and self._at < len(self._layout):
            self._at += 1
            if self._at < len(self._layout):
                self._left = math.prod(self._layout[self._at][2])


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> FileRecord:
    """Write whole arrays, wider types first and otherwise in the order given.

    Raises:
        ValueError: an array of a type the format lacks, or not C-contiguous.
        InputRefused: `output-failed`.
    """
    layout = aligned((name, dtype_of(a), a.shape) for name, a in tensors.items())
    with SafetensorsWriter(path, layout, metadata) as writer:
        for name, _, _ in layout:
            writer.write(name, tensors[name])
        return writer.close()


def aligned(
    layout: Iterable[tuple[str, DType, tuple[int, ...]]],
) -> list[tuple[str, DType, tuple[int, ...]]]:
    """`layout` in an order that leaves every tensor aligned to its type: wider types first."""
    return sorted(layout, key=lambda row: -row[1].nbytes)


def dtype_of(array: NDArray[Any]) -> DType:
    """The format's name of an array's type.

    Raises:
        ValueError: the format has none (complex numbers, big-endian, text).
    """
    found = _DTYPES.get(array.dtype)
    if found is None:
        raise ValueError(f"safetensors has no type for numpy's {array.dtype.str}")
    return found


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Length and header, padded with spaces so that the data starts at a multiple of 8.

    Raises:
        ValueError: a name twice, a tensor not aligned to its type, metadata that is no text.
    """
    if any(not isinstance(v, str) for v in metadata.values()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError("metadata values must be text")
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for name, dtype, shape in layout:
        check_tensor_name(name, "a file to be written")
        if name in header or name == "__metadata__":
            raise ValueError(f"{name} comes twice in the layout")
        if at % dtype.nbytes:
            # torch cannot map such a tensor; see `aligned`.
            raise ValueError(f"{name} would start at byte {at}, not aligned to {dtype.value}")
        extents = [int(d) for d in shape]  # JSON knows no numpy integers
        end = at + math.prod(extents) * dtype.nbytes
        header[name] = {
            "dtype": dtype.value,
            "shape": extents,
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
