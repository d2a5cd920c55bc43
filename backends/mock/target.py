"""Target `mock`: opens artefacts of set speed; no model can be exported to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.mock.spec import read_spec
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
from exporter.errors import InputRefused
from exporter.model import FusedModel
from exporter.store.dtypes import F32

_NO_MODEL = "a mock holds no model: its artefacts are made by `sparse-bench make-mock`"


@dataclass(frozen=True)
class MockTarget:
    """Without options: everything stands in the artefact's mock.json."""

    @property
    def name(self) -> str:
        """The name given to --target."""
        return "mock"

    @property
    def window(self) -> RuntimeWindow:
        """Runs anywhere."""
        return RuntimeWindow("mock", "1", ">=3.10", "any")

    @property
    def tolerance(self) -> Tolerance:
        """Its table is exact."""
        return Tolerance(max_rel=1e-6)

    def runtime(self) -> RuntimeStatus:
        """Always ready."""
        return RuntimeStatus(True, "ready", "1")

    def inspect(self, model: FusedModel) -> Sequence[Diagnostic]:
        """Refuses every model."""
        return [Diagnostic("refusal", _NO_MODEL)]

    def plan(self, model: FusedModel) -> LowerPlan:
        """Nothing is written."""
        return LowerPlan((), 0)

    def lower(self, model: FusedModel, staging: Path, progress: Progress) -> None:
        """Refused.

        Raises:
            InputRefused: `target-refused`.
        """
        raise InputRefused("target-refused", _NO_MODEL)

    def read_back(self, folder: Path) -> Iterable[StoredTensor]:
        """No weights."""
        return ()

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """The mock of this folder, in this process.

        Raises:
            EngineUnfit: `engine-missing` where it plays that.
            InputRefused: `input-missing`, `json-invalid`.
        """
        from backends.mock.session import MockSession

        return MockSession(read_spec(folder))

    def probe(self, folder: Path, tokens: Sequence[int]) -> Mapping[str, F32]:
        """No hidden states.

        Raises:
            InputRefused: `target-refused`.
        """
        raise InputRefused("target-refused", _NO_MODEL)
