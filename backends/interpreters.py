"""Find a CPython in a range of versions that can make a virtual environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Version = tuple[int, int]
_PROBE = (
    "import sys, json, venv, ensurepip;"
    "print(json.dumps([sys.implementation.name, list(sys.version_info[:3])]))"
)


@dataclass(frozen=True)
class Interpreter:
    """A Python that was run and answered."""

    path: str
    version: str  # "3.11.7"


@dataclass(frozen=True)
class PythonRange:
    """Versions from `low` up to, not including, `below`."""

    low: Version
    below: Version

    def __contains__(self, version: object) -> bool:
        return isinstance(version, tuple) and self.low <= version[:2] < self.below

    def __str__(self) -> str:
        return f">={self.low[0]}.{self.low[1]},<{self.below[0]}.{self.below[1]}"


def find_python(wanted: PythonRange, given: str | None = None) -> Interpreter | None:
    """The first that fits: `given` alone if set, ours, pythonX.Y on PATH, pyenv's, newest first."""
    for path in [given] if given else _candidates(wanted):
        found = _probe(path, wanted)
        if found:
            return found
    return None


def _candidates(wanted: PythonRange) -> Iterator[str]:
    if sys.version_info[:2] in wanted:
        yield sys.executable
    minors = range(wanted.below[1] - 1, wanted.low[1] - 1, -1)
    for minor in minors:
        found = shutil.which(f"python{wanted.low[0]}.{minor}")
        if found:
            yield found
    # pyenv's shims answer only for the versions that the user has switched on.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for minor in minors:
        for folder in sorted(pyenv.glob(f"{wanted.low[0]}.{minor}.*"), reverse=True):
            yield str(folder / "bin" / "python")


def _probe(path: str, wanted: PythonRange) -> Interpreter | None:
    try:
        done = subprocess.run(
            [path, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        name, version = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if name != "cpython" or tuple(version) not in wanted:
        return None
    return Interpreter(path, ".".join(str(part) for part in version))
