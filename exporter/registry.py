"""Entry points by name, targets to calibrators: the exporter imports no backend itself.

A package outside this tree adds a target by declaring
`[project.entry-points."sparse_export.targets"] NAME = "module:Class"`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast, get_args, get_type_hints

from exporter.contract import Calibrator, ReferenceSession, Runtime, Target
from exporter.errors import UsageError
from exporter.model import FusedModel

TARGETS = "sparse_export.targets"
REFERENCES = "sparse_export.references"
CALIBRATORS = "sparse_export.calibrators"
RUNTIMES = "sparse_export.runtimes"

ReferenceOpener = Callable[[FusedModel], ReferenceSession]


def target_names() -> tuple[str, ...]:
    """Names of all targets that installed packages offer, sorted."""
    return tuple(sorted({e.name for e in entry_points(group=TARGETS)}))


def load_target(name: str, options: Mapping[str, str] | None = None) -> Target:
    """The target of that name with its options set from text.

    Raises:
        UsageError: `unknown-target`, `target-option`.
    """
    cls = cast(type[Any], _find(TARGETS, name).load())
    return cast(Target, cls(**_parse_options(cls, name, options or {})))


def parse_target(text: str) -> tuple[str, dict[str, str]]:
    """`NAME[,k=v...]` as a name and its options.

    Raises:
        UsageError: `target-option` for a part without `=`, or one given twice.
    """
    name, *parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or key in options:
            raise UsageError(
                "target-option", f"{part!r} in --target {text!r}", expected="k=v, once"
            )
        options[key] = value
    return name, options


def load_reference() -> ReferenceOpener:
    """The float32 reference that verification compares with."""
    return cast(ReferenceOpener, _find(REFERENCES, "torch-float32").load())


def load_calibrator() -> Calibrator:
    """What runs a model over calibration text."""
    return cast(Calibrator, _find(CALIBRATORS, "torch-float32").load()())


def load_runtime(name: str) -> Runtime:
    """The managed environment of that name.

    Raises:
        UsageError: `unknown-target`.
    """
    return cast(Runtime, _find(RUNTIMES, name).load())


def _find(group: str, name: str) -> EntryPoint:
    found = [e for e in entry_points(group=group) if e.name == name]
    if not found:
        known = sorted({e.name for e in entry_points(group=group)})
        raise UsageError("unknown-target", f"{name!r}", expected=f"one of {', '.join(known)}")
    return found[0]


def _parse_options(cls: type[Any], name: str, options: Mapping[str, str]) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = get_type_hints(cls)
    parsed: dict[str, Any] = {}
    for key, text in options.items():
        field = key.replace("-", "_")
        if field not in fields:
            raise UsageError(
                "target-option",
                f"target {name} has no option {key!r}",
                expected=f"one of {', '.join(fields) or 'none'}",
            )
        parsed[field] = _convert(name, key, text, hints[field])
    return parsed


def _convert(name: str, key: str, text: str, hint: Any) -> Any:
    parts = get_args(hint) or (hint,)
    kinds = [kind for part in parts for kind in (get_args(part) or (part,))]  # Literal | None
    literals = [k for k in kinds if isinstance(k, str)]
    try:
        if literals:
            if text not in literals:
                raise ValueError
            return text
        if bool in kinds:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if int in kinds:
            return int(text)
        if float in kinds:
            return float(text)
    except (ValueError, KeyError):
        want = " | ".join(literals) or " | ".join(getattr(k, "__name__", str(k)) for k in kinds)
        raise UsageError(
            "target-option", f"{key}={text} for target {name}", expected=want
        ) from None
    return text
