"""Layer rates that the user gives: a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import InputRefused
from exporter.store.jsonio import read_json
from harness.rates.cka import F64


def read_rates(path: Path, layers: int) -> F64:
    """Share of zeros of each block, `[layers]`: a JSON list, or the "rates" of an object.

    The latter is what a run writes into its own record, so a run's rates can be given to another.

    Raises:
        InputRefused: `rates-invalid`; `json-invalid`, `input-missing`.
    """
    value: Any = read_json(path)
    if isinstance(value, dict):
        value = value.get("rates")
    numbers = isinstance(value, list) and all(type(x) in (int, float) for x in value)
    if not numbers or len(value) != layers or not all(0.0 <= x < 1.0 for x in value):
        found = f"{len(value)} entries" if isinstance(value, list) else "no list"
        raise InputRefused(
            "rates-invalid",
            found,
            expected=f"a list of {layers} shares of zeros, each from 0 to below 1",
            file=path.name,
        )
    return np.asarray(value, dtype=np.float64)
