"""The terminal's side of a run: progress bars, errors, exit codes, and JSON for machines."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from exporter.errors import InputRefused, SparseExportError, UsageError
from exporter.store.signals import stops_raise

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
    """Exit code 130 after Ctrl-C, SIGTERM or SIGHUP, once everything inside has cleaned up."""
    try:
        with stops_raise():
            yield
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing unfinished was left")
        raise SystemExit(INTERRUPTED) from None


def run_app(
    app: typer.Typer,
    args: list[str],
    *,
    as_json: bool = False,
    exit_of: Callable[[SparseExportError], int] = lambda error: error.exit_code,
) -> int:
    """Run one command line of `app`; its exit code, that of an error by `exit_of`.

    What the system refuses in a place that no error of ours covers (a folder that vanishes, a
    cache on a full disk) is told as an error too: a trace tells a user nothing.
    """
    try:
        app(args=args)
    except SparseExportError as error:
        print_error(error, as_json=as_json)
        return int(exit_of(error))
    except OSError as error:
        refused = _of_the_system(error)
        print_error(refused, as_json=as_json)
        return int(exit_of(refused))
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0
        return 1  # Python's own rule for `sys.exit("text")`
    return 0


def _of_the_system(error: OSError) -> InputRefused:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    file = error.filename if isinstance(error.filename, str) else None
    code = "output-failed" if full else "input-unreadable"
    return InputRefused(code, error.strerror or str(error), file=file)


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
