"""Target `hf`: a plain Hugging Face folder with the adapters merged, for every loader there is."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from backends.companions import plan_companions, write_companions
from backends.hf.layout import Shard, shards
from backends.hf.lower import plan_shards, write_shards
from backends.hf.rounded import as_written, main_dtype
from exporter.contract import (
    Diagnostic,
    LowerPlan,
    Progress,
    RuntimeStatus,
    RuntimeWindow,
    Session,
    StoredTensor,
    Tolerance,
)
from exporter.errors import EngineUnfit, UsageError
from exporter.model import FusedModel
from exporter.store.dtypes import F32

_NEEDED = ("torch", "transformers")


@dataclass(frozen=True)
class HfTarget:
    """Options of `--target hf`.

    Args:
        dtype: type of the written weights; None leaves each tensor the type it has.
        shard_mb: megabytes (10^6) of tensors in one file at most.
    """

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    shard_mb: int = 5000

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "hf"

    @property
    def window(self) -> RuntimeWindow:
        """The versions that this is tested with."""
        return RuntimeWindow(
            "transformers", ">=5.16,<5.20", ">=3.10", "anything that loads safetensors"
        )

    @property
    def tolerance(self) -> Tolerance:
        """Both sides run the stored values in float32 torch: only the order of sums may differ."""
        return Tolerance(max_rel=1e-5)

    def runtime(self) -> RuntimeStatus:
        """Whether torch and transformers are here; imports neither."""
        python = platform.python_version()
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            return RuntimeStatus(False, f"{' and '.join(missing)} not installed", python=python)
        return RuntimeStatus(True, "ready", version("transformers"), python)

    def as_written(self, model: FusedModel) -> FusedModel:
        """The values as stored; see `contract.Rounds`."""
        return as_written(model, self.dtype)

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """The refusal of branches kept apart; what the folder is good for."""
        if model.branches:
            text = (
                "--on-merge separate: a plain folder has no place for a branch beside the weights; "
                "merge it, or serve the base with the adapter in PEFT"
            )
            return [Diagnostic("refusal", text, next(iter(model.branches)))]
        text = "loads everywhere, no speed-up here: zeros are stored and computed like any weight"
        return [Diagnostic("note", text)]

    def plan(self, model: FusedModel) -> LowerPlan:
        """As `Target.plan`.

        Raises:
            UsageError: `target-option`.
        """
        plan = plan_shards(self._shards(model))
        companions = plan_companions(model, main_dtype(model, self.dtype))
        return replace(plan, files=(*plan.files, *companions))

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Write weights, config and tokenizer files.

        Raises:
            InputRefused: `value-overflow` for a value beyond `dtype`.
            UsageError: `target-option`.
        """
        write_shards(self._shards(model), staging, progress)
        write_companions(model, staging, main_dtype(model, self.dtype))

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """Every tensor, re-read by the safetensors library."""
        from backends.hf.read_back import read_back

        return read_back(folder)

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Load the folder with transformers, in this process.

        Raises:
            EngineUnfit: `engine-missing`, `engine-refused`.
        """
        return self._session(folder, threads)

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """As `Target.probe`."""
        session = self._session(folder, None)
        try:
            return session.hidden_states(tokens)
        finally:
            session.close()

    def _session(self, folder: Path, threads: int | None):
        status = self.runtime()
        if not status.available:
            raise EngineUnfit("engine-missing", status.reason)
        from backends.hf.session import open_session

        return open_session(folder, threads)

    def _shards(self, model: FusedModel) -> tuple[Shard, ...]:
        if self.shard_mb < 1:
            raise UsageError("target-option", f"hf: shard_mb={self.shard_mb}", expected="1 or more")
        return shards(model, self.dtype, self.shard_mb * 10**6)
