"""What runs now, as a bar on standard error; nothing where that is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """Context manager whose `progress` fits `exporter.contract.Progress`."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<40}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("starting", total=None)

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bars.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what`."""
        self._bars.update(self._task, description=what[:40], completed=done, total=total)
