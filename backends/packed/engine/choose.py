"""Sparse or dense: which form of a linear computes a step of so many rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from backends.packed.kernels.decoder import ByRows
from backends.packed.kernels.linear import CpuLinear
from backends.packed.spec import PackedLinear, Parts

__all__ = ["Build", "Chooser", "Execute"]

Execute = Literal["auto", "sparse", "dense"]
Build = Callable[[PackedLinear, Parts], CpuLinear]


class Chooser:
    """Gives each linear its forms."""

    def forms(self, spec: PackedLinear, parts: Parts, build: Build) -> ByRows:
        """The linear for steps of each class of rows."""
        made = build(spec, parts)
        return made, made, made
