"""The kernels are built before anything here asks for them, and nothing is timed by the way."""

from __future__ import annotations

import pytest

from backends.packed.kernels.library import Library
from tests.kernels.conftest import kernels

__all__ = ["built_kernels", "kernels", "quick_choice"]


@pytest.fixture(autouse=True)
def built_kernels(kernels: Library) -> None:
    """For every test."""
    del kernels


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse is twice as fast, without a look: timing each kind takes longer than all else."""
    monkeypatch.setattr("backends.packed.engine.choose._timed", lambda *given: 0.5)
