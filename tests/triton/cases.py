"""Random packed linears with the float64 weight they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear
from backends.packed.triton.weight import SparseWeight, as_tensor
from backends.packed.values import ValueType

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """`weight` is float64 [out, in], made of what was packed and not of what was read back."""

    spec: PackedLinear
    parts: dict[str, torch.Tensor]
    weight: Array

    @property
    def sparse(self) -> SparseWeight:
        """On the CPU, where the interpreter runs."""
        return SparseWeight.of(self.spec, self.parts)

    def __str__(self) -> str:
        return f"{self.spec.kind} {self.spec.values.value} {self.spec.shape}"


def make(
    kind: str,
    values: ValueType,
    shape: tuple[int, int],
    kept: Array | float = 0.4,
    nm: tuple[int, int] = (0, 0),
    group: int = 0,
    seed: int = 0,
) -> Case:
    """A linear of random values; `kept` a mask or, for kind ragged, the density."""
    rng = np.random.default_rng([seed, *shape])
    mask = _mask(rng, kind, shape, kept, nm)
    codes, scales, weight = _values(rng, values, shape, group if values.quantised else 0)
    weight = np.where(mask, weight, 0.0)
    n, m = nm if kind == "nm" else (0, 0)
    spec = PackedLinear(kind, values, shape, int(mask.sum()), n, m, group * values.quantised)  # pyright: ignore
    found = pack(spec, codes, mask, scales)
    return Case(spec, {name: as_tensor(part) for name, part in found.items()}, weight)


def _mask(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], kept: Array | float, nm: Any
) -> Array:
    if isinstance(kept, np.ndarray):
        return kept
    if kind == "dense":
        return np.ones(shape, bool)
    if kind == "ragged":
        return rng.random(shape) < kept
    n, m = nm
    wide = rng.random((shape[0], -(-shape[1] // m), m)).argsort(-1).argsort(-1) < n
    return wide.reshape(shape[0], -1)[:, : shape[1]]


def _values(
    rng: np.random.Generator, values: ValueType, shape: tuple[int, int], group: int
) -> tuple[Array, Array | None, Array]:
    """What is stored, its scales, and what it stands for."""
    if not values.quantised:
        stored = rng.standard_normal(shape).astype(values.codes)
        return stored, None, stored.astype(np.float64)
    if values is ValueType.FP8:
        codes: Array = (rng.standard_normal(shape) * 100).astype(values.codes)
    else:
        most = 7 if values is ValueType.INT4 else 127
        codes = rng.integers(-most, most + 1, shape).astype(np.int8)
    width = group or shape[1]
    scales = (rng.random((shape[0], -(-shape[1] // width))) + 0.5).astype(ml_dtypes.bfloat16)
    wide = np.repeat(scales.astype(np.float64), width, axis=1)[:, : shape[1]]
    return codes, scales, codes.astype(np.float64) * wide


def rows(case: Case, m: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """x [m, in]."""
    state = torch.Generator().manual_seed(seed)
    return torch.randn(m, case.spec.shape[1], generator=state).to(dtype)


def check(
    case: Case,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    weight: Array | None = None,
) -> None:
    """y equals x W^T + b within what float32 sums and y's own type can lose, entry by entry.

    The bound: each of `in` products and sums rounds by 2^-24 of the running size (here 2^-23, for
    scales too), and the end rounds once to y's type.
    """
    w = case.weight
    left = x.to(torch.float64).numpy()
    shift = np.zeros(w.shape[0]) if bias is None else bias.to(torch.float64).numpy()
    want = left @ w.T + shift
    size = np.abs(left) @ np.abs(w).T + np.abs(shift)
    unit = torch.finfo(y.dtype).eps / 2
    bound = 2.0**-23 * (x.shape[1] + 4) * size + 1.01 * unit * np.abs(want) + 1e-30
    error = np.abs(y.to(torch.float64).numpy() - want)
    assert y.shape == want.shape and y.dtype == x.dtype
    assert (error <= bound).all(), f"{case}: {error.max():.3g}"
