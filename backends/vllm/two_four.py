"""The target `vllm-24`: 2:4 and what is below it, packed or in the layout of old vLLMs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.vllm import refuse
from backends.vllm.diagnose import loads_here, sizes
from backends.vllm.legacy import fits, write
from backends.vllm.machine import look
from backends.vllm.target import PackedTarget
from exporter.contract import Diagnostic, LowerPlan, Progress, RuntimeWindow, StoredTensor
from exporter.errors import UsageError
from exporter.model import FusedModel

# Those of `legacy.write`; None leaves each tensor its type.
_DTYPES = {None: None, "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Vllm24Target(PackedTarget):
    """Options of `--target vllm-24`: every linear 2:4, or an N:M that is 2:4 as well.

    Args:
        layout: "compressed-tensors" for the one that vLLM 0.7.2 to 0.18.1 reads.
    """

    layout: Literal["packed", "compressed-tensors"] = "packed"

    def __post_init__(self) -> None:
        """Refuse options that contradict one another.

        Raises:
            UsageError: `target-option`.
        """
        super().__post_init__()
        if self._legacy and self.values not in _DTYPES:
            found = f"vllm-24: layout=compressed-tensors with values={self.values}"
            raise UsageError("target-option", found, expected="values=bf16 or fp16")

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "vllm-24"

    @property
    def window(self) -> RuntimeWindow:
        """As `Target.window`, by layout."""
        return fits.WINDOW if self._legacy else super().window

    def refusals(self, model: FusedModel) -> Iterator[Diagnostic]:
        """Groups of 4 that keep more than 2."""
        return refuse.breaks_2_4(model)

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """As `Target.inspect`, by layout."""
        if not self._legacy:
            return super().inspect(model)
        found = [*fits.diagnose(model, self._dtype), *self.refusals(model)]
        refused = [each for each in found if each.level == "refusal"]
        return refused or [*found, *self._legacy_notes(model)]

    def as_written(self, model: FusedModel) -> FusedModel:
        """As `contract.Rounds`, by layout."""
        return write.as_written(model, self._dtype) if self._legacy else super().as_written(model)

    def plan(self, model: FusedModel) -> LowerPlan:
        """As `Target.plan`, by layout."""
        if not self._legacy:
            return super().plan(model)
        return write.plan(model, dtype=self._dtype, shard_bytes=self.shard_mb * 10**6)

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """As `Target.lower`, by layout."""
        if not self._legacy:
            super().lower(model, staging, progress)
            return
        limit = self.shard_mb * 10**6
        write.write(model, staging, progress, dtype=self._dtype, shard_bytes=limit)

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """As `Target.read_back`, by layout."""
        if not self._legacy:
            return super().read_back(folder)
        from backends.vllm.legacy.read_back import read_back

        return read_back(folder)

    def _legacy_notes(self, model: FusedModel) -> list[Diagnostic]:
        plan = self.plan(model)
        kinds = ["2:4" for _ in plan.packed]
        return [
            sizes(model, plan, kinds),
            loads_here(look(), self.runtime(), model.spec.head_dim, old=True),
        ]

    @property
    def _legacy(self) -> bool:
        return self.layout == "compressed-tensors"

    @property
    def _dtype(self) -> str | None:
        return _DTYPES[self.values]
