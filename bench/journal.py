"""Raw samples as JSON lines, written as they come: what a stopped run leaves, and goes on from.

The first line says what is measured; a file whose first line is another's is never continued. A
process that was cut short is measured anew, so its lines are dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from bench.readings import ProcessLine, Reading
from exporter.errors import InputRefused, UsageError

Line = Reading | ProcessLine


class Journal:
    """Appends lines to a file, whole and at once.

    Args:
        path: the file; made anew unless `resume`.
        head: what is measured: settings and digests, comparable by `==` after JSON.

    Raises:
        UsageError: `usage` where the file to go on with was made by another measurement.
        InputRefused: `json-invalid`, `output-failed`.
    """

    def __init__(self, path: Path, head: dict[str, Any], *, resume: bool = False) -> None:
        self.path = path
        self.kept: list[Line] = []
        self._head = json.loads(json.dumps({"line": "head", **head}))
        if resume and path.exists():
            self.kept = _whole(self._read())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(path.name + ".new")
            with fresh.open("w", encoding="utf-8") as file:
                file.write(json.dumps(self._head) + "\n")
                file.writelines(line.model_dump_json() + "\n" for line in self.kept)
            os.replace(fresh, path)
            self._file: IO[str] = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputRefused("output-failed", f"{error.strerror}", file=str(path)) from None

    def add(self, line: Line) -> None:
        """One line, given to the system at once: it survives the death of this process."""
        self._file.write(line.model_dump_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()

    def _read(self) -> list[Line]:
        head, lines = read_lines(self.path)
        if head != self._head:
            differ = sorted(k for k in {*head, *self._head} if head.get(k) != self._head.get(k))
            raise UsageError(
                "usage",
                f"its samples are of another measurement: {', '.join(differ)} differ",
                file=str(self.path),
                hint="Leave --resume away, or name another file with --samples.",
            )
        return lines


def read_lines(path: Path) -> tuple[dict[str, Any], list[Line]]:
    """The head and all whole lines; a last line that was cut off is left out.

    Raises:
        InputRefused: `input-unreadable`, `json-invalid`.
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused("input-unreadable", str(error), file=str(path)) from None
    whole = texts[:-1]  # a whole line ends with a newline
    try:
        raw = [json.loads(text) for text in whole]
        if not raw or raw[0].get("line") != "head":
            raise ValueError("no head")
        kinds: dict[str, Callable[[Any], Line]] = {
            "reading": Reading.model_validate,
            "process": ProcessLine.model_validate,
        }
        return raw[0], [kinds[entry["line"]](entry) for entry in raw[1:]]
    except (ValueError, KeyError, AttributeError, ValidationError) as error:
        raise InputRefused("json-invalid", str(error)[:300], file=str(path)) from None


def _whole(lines: list[Line]) -> list[Line]:
    """Lines of processes that came to their end: those that have their process lines."""
    sides = {line.side for line in lines}
    ended: dict[tuple[int, int], set[str]] = {}
    for line in lines:
        if isinstance(line, ProcessLine):
            ended.setdefault((line.run, line.process), set()).add(line.side)
    return [line for line in lines if ended.get((line.run, line.process)) == sides]
