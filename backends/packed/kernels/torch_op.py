"""Packed linears as torch operators, so that compiled and traced models can hold them.

`torch.ops.sparse_export.cpu_linear(x, key, rows)` finds its linear by a number, since an
operator takes tensors and numbers only. Its fake implementation knows shapes and types, which is
all that torch.compile and torch.export ask for.

`torch.ops.sparse_export.cpu_fused(x, key, bias, rows)` is the same for a `FusedLinear`, with the
number in a tensor: a compiled graph that an engine keeps on the disk must not hold the numbers of
the process that compiled it, and equal layers then share a graph.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

from backends.packed.kernels.fused import FusedLinear
from backends.packed.kernels.linear import CpuLinear

__all__ = ["FUSED", "PackedModule", "key_of", "register"]

FUSED = "cpu_fused"

_linears: weakref.WeakValueDictionary[int, CpuLinear] = weakref.WeakValueDictionary()
_fused: weakref.WeakValueDictionary[int, FusedLinear] = weakref.WeakValueDictionary()
_keys = itertools.count(1)
_library = torch.library.Library("sparse_export", "FRAGMENT")


def register(linear: CpuLinear) -> int:
    """The number by which the operator finds `linear`, for as long as the caller keeps it."""
    key = next(_keys)
    _linears[key] = linear
    return key


def key_of(fused: FusedLinear) -> torch.Tensor:
    """The same for `cpu_fused`: int64 `[1]`."""
    key = next(_keys)
    _fused[key] = fused
    return torch.tensor([key], dtype=torch.int64, device="cpu")


def _run(x: torch.Tensor, key: int, rows: int) -> torch.Tensor:
    linear = _linears.get(key)
    if linear is None or linear.spec.shape[0] != rows:
        raise ValueError(f"no packed linear of {rows} rows has the number {key}")
    return linear(x)


def _shape(x: torch.Tensor, key: int, rows: int) -> torch.Tensor:
    kept = x.dtype if x.dtype == torch.bfloat16 else torch.float32
    return x.new_empty((*x.shape[:-1], rows), dtype=kept)


def _run_fused(
    x: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, rows: int
) -> torch.Tensor:
    fused = _fused.get(int(key.item()))
    if fused is None or fused.rows != rows:
        raise ValueError(f"no packed linears of {rows} rows have the number {key.tolist()}")
    return fused(x, bias)


def _fused_shape(
    x: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, rows: int
) -> torch.Tensor:
    del key, bias
    return x.new_empty((*x.shape[:-1], rows))


_library.define("cpu_linear(Tensor x, int key, int rows) -> Tensor")
_library.impl("cpu_linear", _run, "CPU")
torch.library.register_fake("sparse_export::cpu_linear", _shape, lib=_library)

_library.define(f"{FUSED}(Tensor x, Tensor key, Tensor? bias, int rows) -> Tensor")
_library.impl(FUSED, _run_fused, "CPU")
torch.library.register_fake(f"sparse_export::{FUSED}", _fused_shape, lib=_library)


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
