"""What the user asks of an export, as one frozen object; the command line only fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter.calibration.request import CalibrationRequest
from exporter.errors import UsageError
from exporter.sparsity.conventions import Claim


@dataclass(frozen=True)
class AdapterRequest:
    """One `--adapter PATH[=WEIGHT]`."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AdapterRequest:
        """Split `PATH=0.7`; a folder whose name holds "=" wins over the reading as a weight.

        Raises:
            UsageError: `usage` where the weight is no finite number.
        """
        if Path(text).exists() or "=" not in text:
            return cls(Path(text))
        path, _, weight = text.rpartition("=")
        try:
            value = float(weight)
        except ValueError:
            value = float("nan")
        if not -1e6 < value < 1e6:
            raise UsageError(
                "usage", f"weight {weight!r} of --adapter {text!r}", expected="a number"
            )
        return cls(Path(path), value)


@dataclass(frozen=True)
class ExportRequest:
    """One export: inputs, target, policy, output."""

    model: Path
    target: str
    output: Path
    target_options: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[AdapterRequest, ...] = ()
    masks: Path | None = None
    calibration: CalibrationRequest | None = None
    expect: Claim | None = None  # how the user says that the model is sparse
    policy: str | None = None
    force: bool = False
    bisect: bool = False
    lower_only: bool = False

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All folders and files that are read and must not be written to."""
        masks = (self.masks,) if self.masks else ()
        texts = self.calibration.files if self.calibration else ()
        return (self.model, *(a.path for a in self.adapters), *masks, *texts)
