"""Strict JSON in, deterministic JSON out.

The standard parser is kept, with its lenient corners closed: it takes the last of two equal
keys, NaN, 1e999 as infinity, and half a surrogate pair.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn, cast

from exporter.errors import InputRefused
from exporter.limits import LIMITS, Limits
from exporter.store.plainfile import open_plain, read_at, real_path
from exporter.store.sink import FileRecord, RawWriter

_BOMS = {b"\xef\xbb\xbf": "UTF-8 with a mark", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class StrictJsonError(ValueError):
    """What is wrong with a JSON text; `duplicate` names a key that comes twice."""

    def __init__(self, found: str, duplicate: str | None = None, deep: bool = False) -> None:
        super().__init__(found)
        self.duplicate = duplicate
        self.deep = deep


def read_json(path: Path, limits: Limits = LIMITS) -> Any:
    """The value in a UTF-8 JSON file.

    Raises:
        InputRefused: `json-invalid`, `limit-exceeded`, `lfs-pointer`, `input-missing`,
            `input-kind`, `input-unreadable`.
    """
    name = path.name
    fd = open_plain(real_path(path), name)
    try:
        size = os.fstat(fd).st_size
        if size > limits.json_bytes:
            expected = f"at most {limits.json_bytes} bytes"
            raise InputRefused("limit-exceeded", f"{size} bytes", expected=expected, file=name)
        data = bytes(read_at(fd, 0, size, name))
    finally:
        os.close(fd)
    if data.startswith(b"version https://git-lfs"):
        raise InputRefused("lfs-pointer", f"{size} bytes of text", file=name)
    return _typed(data, name, limits)


def _typed(data: bytes, name: str, limits: Limits) -> Any:
    try:
        return parse_json(data, depth=limits.json_depth)
    except StrictJsonError as error:
        code = "limit-exceeded" if error.deep else "json-invalid"
        raise InputRefused(code, str(error), expected="plain UTF-8 JSON", file=name) from error


def parse_json(data: bytes, *, depth: int) -> Any:
    """The value of a UTF-8 JSON text nested at most `depth` deep.

    Raises:
        StrictJsonError: with the reason.
    """
    for bom, what in _BOMS.items():
        if data.startswith(bom):
            raise StrictJsonError(f"starts with a byte order mark ({what})")
    try:
        value: Any = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise StrictJsonError(f"nested deeper than {depth}", deep=True) from None
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(str(error)) from None
    except StrictJsonError:
        raise
    except ValueError:  # CPython's bound on the digits of an integer
        raise StrictJsonError("a number with thousands of digits") from None
    _check_tree(value, depth)
    return value


def dump_json(value: Any) -> bytes:
    """`value` as UTF-8: keys sorted, two spaces, a newline at the end. Equal values, equal bytes.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, sort_keys=True)
    return text.encode("utf-8") + b"\n"


def write_json(path: Path, value: Any) -> FileRecord:
    """Write `dump_json(value)` to a new file, synced to disk.

    Raises:
        InputRefused: `output-failed`.
    """
    with RawWriter(path) as writer:
        writer.write(dump_json(value))
        return writer.close()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise StrictJsonError(f"the key {key[:80]!r} comes twice", duplicate=key)
        out[key] = value
    return out


def _no_constant(text: str) -> NoReturn:
    raise StrictJsonError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError(f"{text[:40]} does not fit a double")
    return value


def _check_tree(value: Any, depth: int) -> None:
    """Bound the nesting and refuse strings that are no text, without recursion."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                pairs = cast("dict[str, Any]", item)
                for key in pairs:
                    _check_text(key)
                below.extend(pairs.values())
            elif isinstance(item, list):
                below.extend(cast("list[Any]", item))
        if not below:
            return
        level = below
    raise StrictJsonError(f"nested deeper than {depth}", deep=True)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJsonError("half of a surrogate pair in a string") from None
