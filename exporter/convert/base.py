"""The contract of a conversion: an adapter in, a folder of another format out, or a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from exporter.adapters.base import Adapter
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused


@dataclass(frozen=True)
class Source:
    """The adapter to be converted, and where it lies."""

    adapter: Adapter
    folder: Path


class Conversion(Protocol):
    """One format to convert to. One file a format under `exporter/convert/`."""

    name: ClassVar[str]

    def write(self, source: Source, spec: ModelSpec, folder: Path) -> None:
        """Write the whole adapter in the new format into `folder`, which is empty.

        Raises:
            InputRefused: `conversion-impossible` where the format cannot hold it exactly.
        """
        ...


def impossible(
    source: Source, found: str, expected: str, hint: str, tensor: str | None = None
) -> InputRefused:
    """The refusal of a conversion."""
    return InputRefused(
        "conversion-impossible",
        f"{source.adapter.family}: {found}",
        expected=expected,
        file=source.adapter.name,
        tensor=tensor,
        hint=hint,
    )
