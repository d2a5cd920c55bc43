"""A Hugging Face folder seen through its headers; tensors are memory-mapped views on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.limits import LIMITS, Limits
from exporter.store.dtypes import F32, DType


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: absolute byte range `[start, end)` of `file` (a plain file name)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.start


@dataclass(frozen=True)
class Sidecar:
    """A file that travels with the weights as bytes: tokenizer, template, generation config."""

    name: str  # plain file name
    path: Path


@dataclass(frozen=True)
class Checkpoint:
    """Headers, config and sidecars of one model folder. Nothing is loaded."""

    root: Path
    entries: Mapping[str, TensorEntry]  # sorted by name
    config: Mapping[str, Any]  # config.json as parsed, never executed
    sidecars: tuple[Sidecar, ...]

    @classmethod
    def open(cls, root: Path, limits: Limits = LIMITS) -> Checkpoint:
        """Read all headers of `root`, strictly.

        Raises:
            InputRefused: every fault of the input-folder list (docs/reference/errors.md).
        """
        raise NotImplementedError  # STORE

    def view(self, name: str, r0: int = 0, r1: int | None = None) -> NDArray[np.generic]:
        """Rows `[r0:r1]` of axis 0 as a read-only array in the stored dtype (scalars: whole)."""
        raise NotImplementedError  # STORE

    def rows(self, name: str, r0: int = 0, r1: int | None = None) -> F32:
        """Rows `[r0:r1]` as fresh float32; pages of the file are given back to the system."""
        raise NotImplementedError  # STORE

    def close(self) -> None:
        """Unmap all files. A later read maps them again."""
        raise NotImplementedError  # STORE
