"""A strict reader of safetensors headers; no tensor is read.

Format: safetensors README, "Format", and docs/safetensors.schema.json of that project. The
library itself (0.8.0) takes two tensors of one name, unknown fields, and names that are empty or
hold NUL; each lets a file mean different things to different readers, so all are refused here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from exporter.errors import InputRefused
from exporter.limits import LIMITS, Limits
from exporter.store.dtypes import DType
from exporter.store.jsonio import StrictJsonError, parse_json
from exporter.store.plainfile import Stamp, open_stamped, read_at, stamp_file

_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_MAX_BYTES = (1 << 63) - 1  # numpy's own bound on the bytes of an array
_DEPTH = 4  # header > tensor > shape > number


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: absolute byte range `[start, end)` of `file` (a plain file name)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What one file says it holds, checked against the file's size."""

    entries: Mapping[str, TensorEntry]  # in the order of their bytes
    metadata: Mapping[str, str]
    nbytes: int  # of the whole file


def read_header(path: Path, limits: Limits = LIMITS) -> Header:
    """Read and check the header of one file.

    Raises:
        InputRefused: `header-invalid`, `header-duplicate`, `header-range`, `file-truncated`,
            `dtype-unsupported`, `limit-exceeded`, `lfs-pointer`, `input-missing`, `input-kind`,
            `input-unreadable`.
    """
    return read_stamped_header(stamp_file(path), limits)


def read_stamped_header(stamp: Stamp, limits: Limits = LIMITS) -> Header:
    """`read_header` of a file that was looked at before."""
    fd = open_stamped(stamp)
    try:
        text = _header_text(fd, stamp, limits)
    finally:
        os.close(fd)
    return _Reader(stamp.name, limits).header(text, stamp.size)


def header_length(first: bytes, size: int, name: str, limits: Limits = LIMITS) -> int:
    """Length of the JSON part from the first 8 bytes of a file of `size` bytes.

    Raises:
        InputRefused: `header-invalid`, `file-truncated`, `limit-exceeded`.
    """
    length = int.from_bytes(first, "little")
    left = size - _LENGTH_BYTES
    if length > limits.header_bytes:
        code = "limit-exceeded" if length <= left else "header-invalid"
        found = f"a header of {length} bytes in a file of {size}"
        expected = f"at most {limits.header_bytes} bytes of header"
        raise InputRefused(code, found, expected=expected, file=name)
    if length > left:
        found = f"{size} bytes, shorter than its header of {length} bytes"
        raise InputRefused("file-truncated", found, file=name)
    return length


def _header_text(fd: int, stamp: Stamp, limits: Limits) -> bytes:
    if stamp.size < _LENGTH_BYTES:
        found = f"{stamp.size} bytes"
        raise InputRefused("file-truncated", found, expected="a header", file=stamp.name)
    first = bytes(read_at(fd, 0, _LENGTH_BYTES, stamp.name))
    length = header_length(first, stamp.size, stamp.name, limits)
    return bytes(read_at(fd, _LENGTH_BYTES, length, stamp.name))


class _Reader:
    """The checks of one header; holds the file's name for the messages."""

    def __init__(self, file: str, limits: Limits) -> None:
        self._file = file
        self._limits = limits

    def header(self, text: bytes, size: int) -> Header:
        raw = self._parse(text)
        metadata = self._metadata(raw.pop(_METADATA, None))
        if len(raw) > self._limits.tensors:
            found = f"{len(raw)} tensors"
            expected = f"at most {self._limits.tensors}"
            raise InputRefused("limit-exceeded", found, expected=expected, file=self._file)
        base = _LENGTH_BYTES + len(text)
        entries = [self._entry(name, fields, base) for name, fields in raw.items()]
        # Two keys: an empty tensor may start where the next one does.
        entries.sort(key=lambda e: (e.start, e.end))
        self._check_cover(entries, base, size)
        return Header({e.name: e for e in entries}, metadata, size)

    def _parse(self, text: bytes) -> dict[str, Any]:
        if not text.startswith(b"{"):
            # The first byte is fixed by the format, so that no file is two formats at once.
            self._invalid("the header does not start with '{'")
        try:
            value = parse_json(text, depth=_DEPTH)
        except StrictJsonError as error:
            code = "header-invalid" if error.duplicate is None else "header-duplicate"
            raise InputRefused(code, str(error), file=self._file) from error
        return cast("dict[str, Any]", value)  # it starts with "{"

    def _metadata(self, value: Any) -> dict[str, str]:
        if value is None:  # absent, or null as some writers leave it
            return {}
        if not isinstance(value, dict):
            self._invalid(f"{_METADATA} is no object")
        pairs = cast("dict[str, Any]", value)
        if not all(isinstance(v, str) for v in pairs.values()):
            self._invalid(f"{_METADATA} holds something other than text")
        return pairs

    def _entry(self, name: str, fields: Any, base: int) -> TensorEntry:
        check_tensor_name(name, self._file, self._limits)
        if not isinstance(fields, dict) or set(cast("dict[str, Any]", fields)) != _FIELDS:
            self._invalid("not exactly dtype, shape and data_offsets", name)
        known = cast("dict[str, Any]", fields)
        shape = self._shape(known["shape"], name)
        dtype = self._dtype(known["dtype"], name)
        offsets = _counts(known["data_offsets"])
        if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
            self._invalid("data_offsets is not [begin, end]", name)
        nbytes = math.prod(shape) * dtype.nbytes
        begin, end = offsets
        if end - begin != nbytes:
            raise InputRefused(
                "header-range",
                f"{end - begin} bytes",
                expected=f"{nbytes} bytes for {dtype.value}{list(shape)}",
                file=self._file,
                tensor=name,
            )
        return TensorEntry(name, dtype, shape, self._file, base + begin, base + end)

    def _shape(self, value: Any, name: str) -> tuple[int, ...]:
        shape = _counts(value)
        if shape is None:
            self._invalid("shape is not a list of counts", name)
        if len(shape) > self._limits.rank:
            expected = f"at most {self._limits.rank}"
            found = f"{len(shape)} dimensions"
            raise InputRefused(
                "limit-exceeded", found, expected=expected, file=self._file, tensor=name
            )
        # An empty tensor has no bytes to check against, yet numpy multiplies its other extents.
        if any(d > _MAX_BYTES for d in shape) or math.prod(d or 1 for d in shape) > _MAX_BYTES // 8:
            self._invalid("a shape that no array can have", name)
        return shape

    def _dtype(self, value: Any, name: str) -> DType:
        if not isinstance(value, str):
            self._invalid("dtype is no text", name)
        try:
            return DType(value)
        except ValueError:
            raise InputRefused(
                "dtype-unsupported",
                f"type {value[:40]!r}",
                expected=", ".join(d.value for d in DType),
                file=self._file,
                tensor=name,
            ) from None

    def _check_cover(self, entries: list[TensorEntry], base: int, size: int) -> None:
        """Byte ranges follow one another from the header to the file's last byte."""
        at = base
        for entry in entries:
            if entry.start != at:
                what = "overlaps the tensor before it" if entry.start < at else "leaves a hole"
                raise InputRefused(
                    "header-range",
                    f"starts at byte {entry.start}: {what}",
                    expected=f"byte {at}",
                    file=self._file,
                    tensor=entry.name,
                )
            at = entry.end
        if size != at:
            code = "file-truncated" if size < at else "header-range"
            found, expected = f"{size} bytes", f"{at} bytes, as the header says"
            cut = next((e.name for e in entries if e.end > size), None)
            raise InputRefused(code, found, expected=expected, file=self._file, tensor=cut)

    def _invalid(self, found: str, tensor: str | None = None) -> NoReturn:
        raise InputRefused("header-invalid", found, file=self._file, tensor=tensor)


def check_tensor_name(name: str, file: str, limits: Limits = LIMITS) -> None:
    """A name is printable text of bounded length: it goes into messages and terminals.

    Raises:
        InputRefused: `header-invalid`, `limit-exceeded`.
    """
    if len(name) > limits.name_chars:
        found = f"a tensor name of {len(name)} characters"
        expected = f"at most {limits.name_chars}"
        raise InputRefused("limit-exceeded", found, expected=expected, file=file)
    if not name or not name.isprintable():
        found = f"tensor name {name!r}"
        raise InputRefused("header-invalid", found, expected="printable text", file=file)


def _counts(value: Any) -> tuple[int, ...] | None:
    """A list of non-negative integers (True is not one), or None."""
    if not isinstance(value, list):
        return None
    items = cast("list[Any]", value)
    if any(type(v) is not int or v < 0 for v in items):
        return None
    return tuple(cast("list[int]", items))
