"""Rows of a task: `DIR/TASK/SPLIT.jsonl`, `.json` (a list of objects) or `.parquet`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from exporter.calibration.source import read_text
from exporter.errors import InputRefused
from exporter.store.digest import digest_file
from exporter.store.jsonio import StrictJsonError, parse_json
from exporter.store.plainfile import stamp_file
from harness.documents import json_lines

SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_BYTES = 512_000_000
_DEPTH = 16


@dataclass(frozen=True)
class DataFile:
    """One file that was read."""

    file: str  # TASK/SPLIT.jsonl
    sha256: str
    rows: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "sha256": self.sha256, "rows": self.rows}


def find_file(folder: Path, task: str, split: str) -> Path:
    """The file of one split of a task.

    Raises:
        InputRefused: `input-missing`, naming the file that is expected; `data-invalid` where
            there are two.
    """
    found = [path for s in SUFFIXES if (path := folder / task / f"{split}{s}").exists()]
    if not found:
        raise InputRefused(
            "input-missing",
            f"no rows of {task}'s {split} split",
            expected=f"{task}/{split}.jsonl (or .json, .parquet), as the hub has its rows",
            file=f"{folder.name}/{task}/{split}.jsonl",
            hint="docs/reference/evaluation.md lists each task's files and fields.",
        )
    if len(found) > 1:
        raise InputRefused(
            "data-invalid",
            " and ".join(path.name for path in found),
            expected="one file for a split",
            file=f"{folder.name}/{task}",
        )
    return found[0]


def read_rows(path: Path, task: str) -> tuple[Any, DataFile]:
    """A `datasets.Dataset` in memory, and what was read. Nothing is cached, no code is run.

    Raises:
        InputRefused: `data-invalid`, `json-invalid`, `limit-exceeded`, `input-*`.
    """
    name = f"{task}/{path.name}"
    table = _parquet(path, name) if path.suffix == ".parquet" else _objects(path, name)
    if not len(table):
        raise InputRefused("data-invalid", "no rows", expected="at least one", file=name)
    return table, DataFile(name, digest_file(stamp_file(path)).record.sha256, len(table))


def _parquet(path: Path, name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        return Dataset(cast(Any, pq).read_table(path))
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputRefused(
            "data-invalid", f"{error}", expected="a parquet file of rows", file=name
        ) from error


def _objects(path: Path, name: str) -> Any:
    import pyarrow as pa
    from datasets import Dataset

    text = read_text(path, MAX_BYTES)
    rows = _lines(text, name) if path.suffix == ".jsonl" else _list(text, name)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise InputRefused(
                "data-invalid",
                f"row {number} is {_told(row)}",
                expected=f"objects with the fields of the first row, {_told(rows[0])}",
                file=name,
            )
    try:
        return Dataset.from_list(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputRefused(
            "data-invalid", f"{error}", expected="one type for each field", file=name
        ) from error


def _told(row: Any) -> str:
    if not isinstance(row, dict):
        return f"no object but {type(row).__name__}"
    return ", ".join(sorted(str(key) for key in cast(dict[Any, Any], row)))[:200] or "empty"


def _lines(text: str, name: str) -> list[Any]:
    return [_value(line, name, f"line {number}: ") for number, line in json_lines(text)]


def _list(text: str, name: str) -> list[Any]:
    value = _value(text, name, "")
    if not isinstance(value, list):
        raise InputRefused(
            "data-invalid", _told(value), expected="a list of objects", file=name,
            hint="Write one object a line into a .jsonl file.",
        )  # fmt: skip
    return cast(list[Any], value)


def _value(text: str, name: str, where: str) -> Any:
    try:
        return parse_json(text.encode(), depth=_DEPTH)
    except StrictJsonError as error:
        raise InputRefused("json-invalid", f"{where}{error}", file=name) from error
