"""The kernels are built before anything here asks for them."""

from __future__ import annotations

import pytest

from backends.packed.kernels.library import Library
from tests.kernels.conftest import kernels

__all__ = ["built_kernels", "kernels"]


@pytest.fixture(autouse=True)
def built_kernels(kernels: Library) -> None:
    """For every test."""
    del kernels
