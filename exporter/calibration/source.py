"""Token ids of a calibration file: UTF-8 text, or ids in JSON or safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.tensors import TensorFile
from exporter.contract import Tokens
from exporter.errors import InputRefused
from exporter.store.jsonio import read_json
from exporter.store.plainfile import open_plain, read_at, real_path

MAX_TEXT_BYTES = 64_000_000  # a text is tokenised in one piece
_INTEGERS = ("I64", "I32", "I16", "U8", "U16", "U32", "U64", "I8")


def read_ids(path: Path, tokenise: Callable[[str], Tokens], vocab: int) -> Tokens:
    """Ids `[n]` below `vocab`, in the order of the file.

    Raises:
        InputRefused: `data-invalid`, `limit-exceeded`, `input-*`, `json-invalid`, `header-*`.
    """
    if path.suffix == ".json":
        ids = _from_json(path)
    elif path.suffix == ".safetensors":
        ids = _from_safetensors(path)
    else:
        ids = tokenise(read_text(path))
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab):
        raise _invalid(path, f"token ids {ids.min()} to {ids.max()}", f"ids from 0 to {vocab - 1}")
    return ids


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """A UTF-8 text that holds more than blanks.

    Raises:
        InputRefused: `data-invalid`, `limit-exceeded`, `input-missing`, `input-kind`,
            `input-unreadable`.
    """
    fd = open_plain(real_path(path), path.name)
    try:
        size = os.fstat(fd).st_size
        if size > most:
            raise InputRefused(
                "limit-exceeded",
                f"{size} bytes",
                expected=f"a text of at most {most} bytes",
                file=path.name,
                hint="Give a part of it.",
            )
        data = bytes(read_at(fd, 0, size, path.name))
    finally:
        os.close(fd)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(path, f"not UTF-8 at byte {error.start}", "UTF-8 text") from error
    if not text.strip():
        raise _invalid(path, "the text is empty", "text")
    return text


def _from_json(path: Path) -> Tokens:
    value: Any = read_json(path)
    rows: list[Any] = value if isinstance(value, list) else [None]
    flat: list[Any] = []
    for row in rows:
        flat.extend(row if isinstance(row, list) else [row])
    if not flat or not all(type(i) is int and abs(i) < 1 << 62 for i in flat):
        raise _invalid(path, "something else", "a list of token ids, or a list of such lists")
    return np.asarray(flat, np.int64)


def _from_safetensors(path: Path) -> Tokens:
    file = TensorFile(path, path.name)
    entries = list(file.entries.values())
    if len(entries) != 1 or entries[0].dtype.value not in _INTEGERS or not entries[0].nbytes:
        names = ", ".join(f"{e.name} {e.dtype.value}{list(e.shape)}" for e in entries[:4])
        raise _invalid(path, names or "no tensor", "one tensor of integers, any shape")
    ids: NDArray[Any] = file.raw(entries[0].name)
    return ids.reshape(-1).astype(np.int64)


def _invalid(path: Path, found: str, expected: str) -> InputRefused:
    return InputRefused("data-invalid", found, expected=expected, file=path.name)
