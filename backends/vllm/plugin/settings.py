"""What the user sets through the environment."""

from __future__ import annotations

import os
from typing import Literal

from exporter.errors import UsageError

MEMORY = "SPARSE_EXPORT_MEMORY"
Memory = Literal["fast", "low"]


def memory() -> Memory:
    """`SPARSE_EXPORT_MEMORY`: "fast" decompresses once at load, "low" at every call.

    Raises:
        UsageError: `usage`, for any other value.
    """
    value = os.environ.get(MEMORY, "fast").lower()
    if value not in ("fast", "low"):
        raise UsageError("usage", f"{MEMORY}={value}", expected="fast or low")
    return value
