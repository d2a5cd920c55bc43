"""A packed linear as a torch operator, so that compiled and traced models can hold it.

`torch.ops.sparse_export.cpu_linear(x, key, rows)` finds its linear by a number, since an
operator takes tensors and numbers only. Its fake implementation knows shapes and types, which is
all that torch.compile and torch.export ask for.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

from backends.packed.kernels.linear import CpuLinear

__all__ = ["PackedModule", "register"]

_linears: weakref.WeakValueDictionary[int, CpuLinear] = weakref.WeakValueDictionary()
_keys = itertools.count(1)
_library = torch.library.Library("sparse_export", "FRAGMENT")


def register(linear: CpuLinear) -> int:
    """The number by which the operator finds `linear`, for as long as the caller keeps it."""
    key = next(_keys)
    _linears[key] = linear
    return key


def _run(x: torch.Tensor, key: int, rows: int) -> torch.Tensor:
    linear = _linears.get(key)
    if linear is None or linear.spec.shape[0] != rows:
        raise ValueError(f"no packed linear of {rows} rows has the number {key}")
    return linear(x)


def _shape(x: torch.Tensor, key: int, rows: int) -> torch.Tensor:
    kept = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    return x.new_empty((*x.shape[:-1], rows), dtype=kept)


_library.define("cpu_linear(Tensor x, int key, int rows) -> Tensor")
_library.impl("cpu_linear", _run, "CPU")
torch.library.register_fake("sparse_export::cpu_linear", _shape, lib=_library)


class PackedModule(torch.nn.Module):
    """A linear of a model: x [..., in] to [..., out], bfloat16 where x is, otherwise float32."""

    def __init__(self, linear: CpuLinear) -> None:
        """Hold `linear` and register it."""
        super().__init__()
        self.linear = linear
        self._key, self._rows = register(linear), linear.spec.shape[0]

    def forward(self, x: torch.Tensor) -> Any:
        """The product, by the operator."""
        return torch.ops.sparse_export.cpu_linear(x, self._key, self._rows)
