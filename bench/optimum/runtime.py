"""The peer's managed environment."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from backends.interpreters import PythonRange
from backends.runtimes import ManagedRuntime

_HERE = Path(__file__).parent


def unfit() -> str | None:
    """Why the lock cannot be installed here, or None."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"its lock is for x86-64 Linux, this is {sys.platform} {platform.machine()}"
    return None


RUNTIME = ManagedRuntime(
    name="optimum-onnx",
    engine="optimum-onnx",
    version="0.1.0",
    # The CPU wheel of torch in the lock is known by its hash, and each Python has another.
    python=PythonRange((3, 11), (3, 12)),
    lock=_HERE / "runtime.lock",
    check=_HERE / "check.py",
    unfit=unfit,
    env={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
)
