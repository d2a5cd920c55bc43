"""Whether an output may stand where the user wants it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from exporter.errors import UsageError
from exporter.store.plainfile import real_path

# What a folder that this package or a model's trainer published has at its top level. --force on
# any other folder is more likely a slip ("-o ~/models") than a wish to delete it.
_REPLACEABLE = (
    ".sparse-export",
    "config.json",
    "adapter_config.json",
    "pool_config.json",
    "train.json",
)


def resolve_output(out: Path) -> Path:
    """The real path of an output that need not exist; links are followed.

    Raises:
        UsageError: `usage` for a path that can be no folder of ours.
    """
    try:
        place = Path(os.path.realpath(out))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(place)
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a NUL
        raise UsageError("usage", f"output path: {error}", file=repr(str(out))) from error
    if not place.name:
        raise UsageError("usage", "the root of the file system", expected="an output folder")
    return place


def refuse_overlap(place: Path, inputs: Sequence[Path]) -> None:
    """No input is the output, lies in it, or contains it, by path or by inode.

    Raises:
        UsageError: `output-inside-input`.
    """
    for given in inputs:
        real = real_path(given)
        if place.is_relative_to(real) or _holds(real, place):
            found = "is the input" if _same(place, real) else "lies inside the input"
        elif real.is_relative_to(place) or _holds(place, real):
            found = "contains the input"
        else:
            continue
        raise UsageError("output-inside-input", f"{found} {given.name}", file=place.name)


def refuse_existing(place: Path, force: bool) -> None:
    """An existing output is replaced only when asked for, and only when it is ours to replace.

    Raises:
        UsageError: `output-exists`.
    """
    if not os.path.lexists(place):
        return
    if not force:
        raise UsageError("output-exists", "the folder is there", file=place.name)
    if not place.is_dir():
        found = "something that is no folder"
        raise UsageError("output-exists", found, file=place.name, hint="Name another with -o.")
    keep = [p for p in (Path.home(), Path.cwd()) if real_path(p).is_relative_to(place)]
    try:
        ours = not any(place.iterdir()) or any((place / mark).exists() for mark in _REPLACEABLE)
    except PermissionError:  # what one may not look into, one does not replace
        ours = False
    if keep or not ours:
        raise UsageError(
            "output-exists",
            "the folder holds other things than an earlier output",
            expected=f"an empty folder, or one with {', '.join(_REPLACEABLE)}",
            file=place.name,
            hint="Name another with -o, or remove that folder yourself.",
        )


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `outer` is `inner` or above it under another path: a bind mount, another case."""
    return any(_same(outer, p) for p in (inner, *inner.parents))


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
