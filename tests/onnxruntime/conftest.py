"""The kernels are built before anything here asks for them."""

from __future__ import annotations

from tests.kernels.conftest import kernels

__all__ = ["kernels"]
