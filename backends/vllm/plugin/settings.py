"""What the user sets through the environment."""

from __future__ import annotations

import os
from typing import Literal, cast

from backends.packed.engine.choose import Execute
from exporter.errors import UsageError

MEMORY = "SPARSE_EXPORT_MEMORY"
EXECUTE = "SPARSE_EXPORT_EXECUTE"
THREADS = "SPARSE_EXPORT_THREADS"
Memory = Literal["fast", "low"]
Threads = Literal["openmp", "own"]


def memory() -> Memory:
    """`SPARSE_EXPORT_MEMORY`: what runs dense is decompressed once at load ("fast"), or at every
    call ("low").

    Raises:
        UsageError: `usage`, for any other value.
    """
    return cast(Memory, _setting(MEMORY, "fast", "low"))


def execute() -> Execute:
    """`SPARSE_EXPORT_EXECUTE`: on a CPU, "sparse" computes linears that are stored sparse from
    their packed form, "dense" as vLLM does its own, "auto" as is faster.

    Raises:
        UsageError: `usage`, for any other value.
    """
    return cast(Execute, _setting(EXECUTE, "auto", "sparse", "dense"))


def threads() -> Threads:
    """`SPARSE_EXPORT_THREADS`: whose threads run the CPU kernels, torch's or a pool of their own.

    Raises:
        UsageError: `usage`, for any other value.
    """
    return cast(Threads, _setting(THREADS, "openmp", "own"))


def _setting(name: str, *values: str) -> str:
    """The variable's value in lower case; the first of `values` where it is not set."""
    value = os.environ.get(name, values[0]).lower()
    if value not in values:
        expected = f"{', '.join(values[:-1])} or {values[-1]}"
        raise UsageError("usage", f"{name}={value}", expected=expected)
    return value
