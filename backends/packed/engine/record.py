"""Measured ratios in the user's cache, a JSON file a machine; a broken one counts as none."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.runtimes import runtimes_home

__all__ = ["read_record", "record_file", "write_record"]


def record_file(machine: str) -> Path:
    """Where the ratios of a machine are kept, or would be."""
    name = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return runtimes_home().with_name("kernels") / f"{name}.json"


def read_record(machine: str, classes: int) -> dict[str, list[float]]:
    """Kind of linear -> ratios, one a class; empty where nothing is kept that can be read."""
    try:
        found: Any = json.loads(record_file(machine).read_text(encoding="utf-8"))
        if found["machine"] != machine:
            return {}
        pairs = [(str(kind), [float(r) for r in each]) for kind, each in found["ratios"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {kind: each for kind, each in pairs if len(each) == classes and min(each) > 0}


def write_record(machine: str, kind: str, ratios: list[float], classes: int) -> None:
    """Add one kind; a cache that cannot be written is done without."""
    kept: Mapping[str, list[float]] = {**read_record(machine, classes), kind: ratios}
    file = record_file(machine)
    text = json.dumps({"machine": machine, "ratios": kept}, indent=1, sort_keys=True) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=file.name, dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(name, file)
    except OSError:
        return
