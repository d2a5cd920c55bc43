"""Libraries of the `report` extra: imported where needed, and asked for by name where missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from exporter.errors import UsageError


def need(module: str) -> ModuleType:
    """Import a module of the `report` extra.

    Raises:
        UsageError: `usage`, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            "usage",
            f"{module.partition('.')[0]} is not installed",
            expected="the libraries of the extra `report`",
            hint='pip install "sparse-export[report]"',
        ) from None
