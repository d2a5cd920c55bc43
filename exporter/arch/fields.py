"""Typed, bounded reading of a parsed config.json: every wrong type or range is `config-invalid`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import InputRefused

FILE = "config.json"


def invalid(key: str, value: object, expected: str) -> InputRefused:
    """The error for a field that has the wrong type or range."""
    return InputRefused(
        "config-invalid", f"{key} is {value!r:.80}", expected=expected, file=FILE, tensor=None
    )


@dataclass(frozen=True)
class Fields:
    """Fields of `values`, or of `defaults` where a config leaves one out.

    `prefix` names the place in the file for messages ("rope_parameters.").
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    prefix: str = ""

    def raw(self, key: str) -> Any:
        """The value as parsed; None where neither config nor defaults have it."""
        return self.values[key] if key in self.values else self.defaults.get(key)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in `[low, high]`; true and 8.0 are none."""
        value = self.raw(key)
        if type(value) is not int or not low <= value <= high:
            raise invalid(self.prefix + key, value, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in `[low, high]`."""
        value = self.raw(key)
        # math.isfinite refuses integers beyond float64 with OverflowError: compare those first.
        fine = type(value) in (int, float) and low <= value <= high and math.isfinite(value)
        if not fine:
            raise invalid(self.prefix + key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """true or false; an absent or null flag is false."""
        value = self.raw(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise invalid(self.prefix + key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self.raw(key)
        if not isinstance(value, str):
            raise invalid(self.prefix + key, value, "a string")
        return value
