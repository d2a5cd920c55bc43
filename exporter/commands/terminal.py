"""The terminal's side of a run: progress bars, errors, exit codes, and JSON for machines."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from exporter.errors import SparseExportError, UsageError

INTERRUPTED = 130


class TerminalListener:
    """Shows the running stage and a bar on standard error; silent where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.percentage:>4.0f}%"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> TerminalListener:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def stage(self, name: str) -> None:
        """Begin a new line."""
        self._stage = name
        if self._console.is_terminal:
            self._next(name)
        else:
            self._console.print(f"{name} ...")

    def progress(self, what: str, done: int, total: int) -> None:
        """Move the bar."""
        if self._console.is_terminal and self._task is not None:
            label = f"{self._stage}: {what}"
            self._bars.update(self._task, description=label[-34:], completed=done, total=total)

    def _next(self, name: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=None)


@contextmanager
def interruptible() -> Generator[None]:
    """Exit code 130 after Ctrl-C or SIGTERM, which staging turns into the same interrupt."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing was published")
        raise SystemExit(INTERRUPTED) from None


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def print_error(error: SparseExportError, *, as_json: bool) -> None:
    """Tell the user on standard error, and a machine on standard output."""
    if as_json:
        print_json({"error": error.as_dict()})
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    shares = getattr(error, "shares", None)
    if isinstance(error, UsageError) and shares:
        # Imported here: only a refused merge needs it.
        from exporter.merge.table import render_shares

        render_shares(shares, console)
    console.print(
        f"error {error}", style="red" if not os.environ.get("NO_COLOR") else None, markup=False
    )
