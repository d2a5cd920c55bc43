"""Result files: written whole, with their folder."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import InputRefused


def write_text(path: Path, text: str) -> None:
    """Write a result as UTF-8, making its folder.

    Raises:
        InputRefused: `output-failed`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputRefused("output-failed", f"{error.strerror}", file=str(path)) from None
