"""`KEY=VALUE` texts as fields of a method's frozen dataclass, checked by their types."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from exporter.errors import UsageError

Settings = TypeVar("Settings")


def parse_settings(cls: type[Settings], texts: Sequence[str], method: str) -> Settings:
    """An instance of the dataclass `cls` with the fields of `texts`, others at their defaults.

    Raises:
        UsageError: `usage` for a field that is unknown, given twice, or of another type.
    """
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.replace("-", "_")
        if not equals or key not in names or key in values:
            raise UsageError(
                "usage",
                f"--set {text} for {method}",
                expected=f"KEY=VALUE, once, with KEY of {', '.join(names) or 'none'}",
            )
        values[key] = _convert(text, value, hints[key])
    return cls(**values)


def _convert(text: str, value: str, hint: Any) -> Any:
    parts = get_args(hint) or (hint,)
    kinds = [kind for part in parts for kind in (get_args(part) or (part,))]
    literals = [kind for kind in kinds if isinstance(kind, str)]
    try:
        if literals:
            if value not in literals:
                raise ValueError
            return value
        if bool in kinds:
            return {"true": True, "false": False}[value.lower()]
        if int in kinds:
            return int(value)
        return float(value) if float in kinds else value
    except (ValueError, KeyError):
        want = " | ".join(literals) or " | ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise UsageError("usage", f"--set {text}", expected=want) from None
