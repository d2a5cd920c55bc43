"""Attack files, generated: bytes or folders that must be refused, each with its code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 269060552\n"


def raw_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def tensor(shape: Any, begin: Any, end: Any, dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def file_of(tensors: Any, nbytes: int) -> bytes:
    return raw_file(json.dumps(tensors).encode(), bytes(nbytes))


GOOD = file_of({"a": tensor([2], 0, 8), "b": tensor([2, 2], 8, 24)}, 24)

# name -> (bytes of the file, expected code)
HEADERS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "file-truncated"),
    "seven bytes": (GOOD[:7], "file-truncated"),
    "short by one byte": (GOOD[:-1], "file-truncated"),
    "short by half": (GOOD[: len(GOOD) // 2], "file-truncated"),
    "short by all data": (GOOD[:-24], "file-truncated"),
    "trailing byte": (GOOD + b"\0", "header-range"),
    "git-lfs pointer": (LFS, "lfs-pointer"),
    "length of 1 TB": (struct.pack("<Q", 1 << 40) + b"{}", "header-invalid"),
    "length of 2^64-1": (b"\xff" * 8 + b"{}", "header-invalid"),
    "html page": (b"<!DOCTYPE html><html></html>", "header-invalid"),
    "hole": (file_of({"a": tensor([2], 0, 8), "b": tensor([2], 12, 20)}, 20), "header-range"),
    "hole at the start": (file_of({"a": tensor([2], 4, 12)}, 12), "header-range"),
    "overlap": (file_of({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, 12), "header-range"),
    "shared bytes": (file_of({"a": tensor([2], 0, 8), "b": tensor([2], 0, 8)}, 8), "header-range"),
    "end before begin": (file_of({"a": tensor([2], 8, 0)}, 8), "header-invalid"),
    "size differs from shape": (file_of({"a": tensor([3], 0, 8)}, 8), "header-range"),
    "overflowing shape": (file_of({"a": tensor([1 << 40] * 4, 0, 8)}, 8), "header-invalid"),
    "wraps to the right size": (
        file_of({"a": tensor([1 << 32, 1 << 30, 4], 0, 0)}, 0),
        "header-invalid",
    ),
    "empty but impossible": (file_of({"a": tensor([0, 1 << 62, 8], 0, 0)}, 0), "header-invalid"),
    "negative shape": (file_of({"a": tensor([-2, -1], 0, 8)}, 8), "header-invalid"),
    "shape of true": (file_of({"a": tensor([True], 0, 4)}, 4), "header-invalid"),
    "shape of floats": (file_of({"a": tensor([2.0], 0, 8)}, 8), "header-invalid"),
    "shape of text": (file_of({"a": tensor("2", 0, 8)}, 8), "header-invalid"),
    "nine dimensions": (file_of({"a": tensor([1] * 9, 0, 4)}, 4), "limit-exceeded"),
    "one offset": (
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, 4),
        "header-invalid",
    ),
    "offsets of floats": (file_of({"a": tensor([2], 0.0, 8.0)}, 8), "header-invalid"),
    "unknown type": (file_of({"a": tensor([2], 0, 8, "F33")}, 8), "dtype-unsupported"),
    "type is a number": (file_of({"a": tensor([2], 0, 8, 7)}, 8), "header-invalid"),
    "unknown field": (file_of({"a": tensor([2], 0, 8, extra=1)}, 8), "header-invalid"),
    "missing field": (file_of({"a": {"dtype": "F32", "shape": [2]}}, 8), "header-invalid"),
    "tensor is a list": (file_of({"a": [1, 2]}, 0), "header-invalid"),
    "header is a list": (raw_file(b"[]"), "header-invalid"),
    "header is cut": (raw_file(b'{"a":'), "header-invalid"),
    "leading blank": (raw_file(b" {}"), "header-invalid"),
    "byte order mark": (raw_file(b"\xef\xbb\xbf{}"), "header-invalid"),
    "not UTF-8": (raw_file(b'{"\xff":1}'), "header-invalid"),
    "polyglot zip": (raw_file(b"{}", b"PK\x05\x06" + bytes(18)), "header-range"),
    "deep": (raw_file(b'{"a":' + b"[" * 200_000), "header-invalid"),
    "million digits": (raw_file(b'{"a":' + b"9" * 1_000_000 + b"}"), "header-invalid"),
    "duplicate name": (
        raw_file(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "header-duplicate",
    ),
    "duplicate field": (
        raw_file(b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "header-duplicate",
    ),
    "escaped duplicate": (
        raw_file(
            b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            b'"\\u0061":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        ),
        "header-duplicate",
    ),
    "empty name": (file_of({"": tensor([2], 0, 8)}, 8), "header-invalid"),
    "NUL in a name": (file_of({"a\0b": tensor([2], 0, 8)}, 8), "header-invalid"),
    "terminal escape in a name": (file_of({"\x1b[2J": tensor([2], 0, 8)}, 8), "header-invalid"),
    "half a surrogate": (file_of({"\ud800": tensor([2], 0, 8)}, 8), "header-invalid"),
    "long name": (file_of({"a" * 513: tensor([2], 0, 8)}, 8), "limit-exceeded"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}, 0), "header-invalid"),
    "metadata is a list": (file_of({"__metadata__": []}, 0), "header-invalid"),
}

# name -> (text of a JSON file, expected code)
JSONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "json-invalid"),
    "cut": (b'{"a": 1', "json-invalid"),
    "two values": (b"{} {}", "json-invalid"),
    "byte order mark": (b"\xef\xbb\xbf{}", "json-invalid"),
    "UTF-16 with mark": ("{}".encode("utf-16"), "json-invalid"),
    "UTF-16 without mark": ('{"a": 1}'.encode("utf-16-le"), "json-invalid"),
    "not UTF-8": (b'{"a": "\xe9"}', "json-invalid"),
    "duplicate key": (b'{"a": 1, "a": 1}', "json-invalid"),
    "duplicate below": (b'[{"x": {"a": 1, "b": 2, "a": 3}}]', "json-invalid"),
    "NaN": (b'{"a": NaN}', "json-invalid"),
    "infinity": (b'{"a": -Infinity}', "json-invalid"),
    "1e999": (b'{"a": 1e999}', "json-invalid"),
    "digits": (b"9" * 10_000, "json-invalid"),
    "half a surrogate": (b'["\\ud800"]', "json-invalid"),
    "half a surrogate as key": (b'{"\\udfff": 1}', "json-invalid"),
    "65 deep": (b"[" * 66 + b"]" * 66, "limit-exceeded"),
    "200,000 deep": (b"[" * 200_000, "limit-exceeded"),
    "git-lfs pointer": (LFS, "lfs-pointer"),
}


def write_model(root: Path, shards: dict[str, dict[str, Any]] | None = None) -> Path:
    """A small model folder with the library's own writer; sharded when `shards` is given."""
    import numpy as np
    from safetensors.numpy import save_file

    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text('{"model_type": "llama"}')
    if shards is None:
        save_file({"a": np.arange(8, dtype=np.float32)}, root / "model.safetensors")
        return root
    total = 0
    for name, tensors in shards.items():
        save_file(tensors, root / name)
        total += sum(t.nbytes for t in tensors.values())
    weight_map = {t: name for name, tensors in shards.items() for t in tensors}
    write_index(root, weight_map, total)
    return root


def write_index(root: Path, weight_map: Any, total: Any) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_index(root: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))
