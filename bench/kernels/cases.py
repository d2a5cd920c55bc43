"""What is timed: random packed linears, their dense twins, and torch's linear."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.packed.kernels.linear import CpuLinear, Precision
from backends.packed.pack import pack
from backends.packed.spec import PackedLinear
from backends.packed.values import ValueType

__all__ = ["Case", "kernel_case", "torch_case"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One thing to time: `calls` run one after the other, each on a copy of its own.

    `bytes` is what one call reads of the weight. A case of another process has no calls but
    `elsewhere`, which makes a number of them there and answers the seconds of one linear; a call
    there runs `linears` of them.
    """

    name: str
    calls: tuple[Callable[[], object], ...]
    bytes: int
    elsewhere: Callable[[int], float] | None = None
    linears: int = 1

    def seconds(self, first: int, calls: int) -> float:
        """Seconds of one of `calls` calls, on the copies from number `first` on."""
        if self.elsewhere:
            return self.elsewhere(calls)
        begin = time.perf_counter()
        for i in range(first, first + calls):
            self.calls[i % len(self.calls)]()
        return (time.perf_counter() - begin) / calls


def kernel_case(
    name: str, shape: tuple[int, int], values: str, pattern: str, m: int, total: int
) -> Case:
    """A packed linear: pattern "dense", "70%" (zeros) or "2:4".

    Args:
        values: a type of values, which meet x as in engines: int8 that of 16 bits. "int8-a8": int8
            values with x of 8 bits.
        total: bytes that all copies together exceed, so that none stays in a cache.
    """
    kind, _, eight = values.partition("-a")
    precision: Precision = "int8" if eight == "8" else "int16"
    spec, parts = _linear(shape, ValueType(kind), pattern)
    one = CpuLinear.build(spec, parts, precision=precision)
    stored = sum(part.nbytes for part in parts.values())
    read = one.row_nbytes if m == 1 else stored  # one of the copies that other numbers of rows read
    copies = [one]
    while read * len(copies) < total:
        copies.append(CpuLinear.build(spec, parts, precision=precision))
    x = _x(m, shape[1])
    return Case(name, tuple(_call(each, x) for each in copies), read)


def torch_case(name: str, shape: tuple[int, int], m: int, total: int, *, half: bool) -> Case:
    """torch.nn.functional.linear in bfloat16 or float32, threads as the kernels have."""
    import torch

    from backends.packed.kernels.library import library

    torch.set_num_threads(library().threads)
    dtype = torch.bfloat16 if half else torch.float32
    bytes_ = shape[0] * shape[1] * dtype.itemsize
    weights = [torch.randn(shape).to(dtype) for _ in range(-(-total // bytes_))]
    x = torch.from_numpy(_x(m, shape[1])).to(dtype)

    def call(weight: torch.Tensor) -> Callable[[], object]:
        def run() -> object:
            with torch.inference_mode():
                return torch.nn.functional.linear(x, weight)

        return run

    return Case(name, tuple(call(each) for each in weights), bytes_)


def _call(linear: CpuLinear, x: Array) -> Callable[[], object]:
    return lambda: linear(x)


def _x(m: int, columns: int) -> Array:
    return np.random.default_rng(1).standard_normal((m, columns)).astype(np.float32)


@lru_cache(1)
def _weight(shape: tuple[int, int]) -> Array:
    return np.random.default_rng(2).standard_normal(shape, np.float32)


def _linear(
    shape: tuple[int, int], values: ValueType, pattern: str
) -> tuple[PackedLinear, dict[str, Array]]:
    rng, weight = np.random.default_rng(0), _weight(shape)
    kind, n, m, kept = "ragged", 0, 0, np.ones(shape, np.bool_)
    if pattern == "dense":
        kind = "dense"
    elif pattern.endswith("%"):
        kept = rng.random(shape, np.float32) >= float(pattern[:-1]) / 100
    else:
        kind, (n, m) = "nm", tuple(map(int, pattern.split(":")))
        order = rng.random((shape[0], shape[1] // m, m), np.float32).argsort(axis=-1)
        kept = (order < n).reshape(shape)
    scales = None
    codes: Array = weight.astype(values.codes)
    if values.quantised:
        from exporter.store.dtypes import DType

        scales = np.full((shape[0], 1), 1 / 32, DType.BF16.numpy)
        most = {ValueType.INT8: 127, ValueType.INT4: 7}[values]
        codes = np.rint(weight * 32).clip(-most, most).astype(np.int8)
    spec = PackedLinear(kind, values, shape, int(kept.sum()), n, m)  # type: ignore[arg-type]
    return spec, dict(pack(spec, codes, kept, scales))
