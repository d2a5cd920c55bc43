"""Whether an adapter belongs to the base at hand."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from exporter.adapters.base import BaseIdentity
from exporter.errors import InputRefused

# Facts that depend on what the base's folder is called here.
LOCAL = frozenset({"base_name_agrees", "base_warning"})


def base_facts(
    named: str | None, sha256: str | None, base: BaseIdentity, file: str
) -> dict[str, Any]:
    """Compare what an adapter records of its base; gives facts for the report.

    A name is a path or a hub id and differs from machine to machine, so a different name is a
    warning, and what follows from the base's name (`LOCAL`) stays out of the report. A digest
    that differs is a refusal; the base is read whole for it, so only where one is recorded.

    Raises:
        InputRefused: `adapter-base`.
    """
    if sha256 is not None:
        found = base.sha256()
        if found != sha256:
            raise InputRefused(
                "adapter-base",
                f"the base's digest is {found[:16]}..., the adapter records {sha256[:16]}...",
                expected="the very weights that the adapter was trained on",
                file=file,
            )
    same, warning = _same_name(named, base.name), None
    if same is False and sha256 is None:
        warning = f"trained on {_last(named)!r}, exported with {_last(base.name)!r}: check the base"
    return {
        "base_named": _last(named),
        "base_name_agrees": same,
        "base_warning": warning,
        "base_digest": sha256,
    }


def _same_name(named: str | None, base: str | None) -> bool | None:
    if not named or not base:
        return None
    return _last(named) == _last(base)


def _last(name: str | None) -> str | None:
    """The last part of a path or hub id: the rest is a matter of one machine."""
    return PurePosixPath(name.replace("\\", "/")).name if name else None
