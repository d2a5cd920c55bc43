"""Run the real commands as a person would, each line printed before it runs."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from exporter.errors import SparseExportError

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "build" / "bench"
BIN = Path(sys.executable).parent


def step(*command: str, allowed: tuple[int, ...] = (0,)) -> int:
    """Run a console script of this environment; leave with its code where that is not allowed."""
    shown = shlex.join(Path(part).name if part.startswith(str(BIN)) else part for part in command)
    print(f"\n$ {shown}", flush=True)
    start = time.perf_counter()
    code = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, check=False).returncode
    print(f"  ({time.perf_counter() - start:.1f} s, exit code {code})", flush=True)
    if code not in allowed:
        sys.exit(code)
    return code


def main_of(work: Callable[[], int]) -> int:
    """Run a script's `work`; an error of ours is told without a trace, its exit code returned.

    Ended by a signal, it ends the command that is running too.
    """
    signal.signal(signal.SIGTERM, _leave)
    try:
        return work()
    except SparseExportError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit_code


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def make_once(folder: Path, *command: str) -> None:
    """Run a command that makes `folder`, unless it is there: commands make folders whole."""
    if folder.exists():
        print(f"{folder.relative_to(ROOT)} is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    step(*command)
