"""Packed linears of every kind for the tests: sources drawn by hypothesis or by a seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from backends.packed.pack import pack
from backends.packed.spec import KINDS, PackedLinear, ValueType
from exporter.store.dtypes import DType

BF16 = DType.BF16.numpy
NM = [(2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (1, 8), (7, 8), (1, 16), (5, 16), (15, 16)]


class Source(NamedTuple):
    """A linear before packing."""

    spec: PackedLinear
    codes: np.ndarray  # [out, in], with garbage where nothing is kept
    kept: np.ndarray  # bool [out, in]
    scales: np.ndarray | None  # bfloat16 [out, G]

    def pack(self) -> dict[str, np.ndarray]:
        return dict(pack(self.spec, self.codes, self.kept, self.scales))

    def stored(self) -> np.ndarray:
        """The codes with 0 where nothing is kept."""
        return np.where(self.kept, self.codes.astype(np.float64), 0).astype(self.codes.dtype)

    def weight(self) -> np.ndarray:
        """float64 `[out, in]`: code times scale, column by column."""
        wide = self.stored().astype(np.float64)
        if self.scales is None:
            return wide
        group = self.spec.group or self.spec.shape[1]
        for column in range(wide.shape[1]):
            wide[:, column] *= self.scales[:, column // group].astype(np.float64)
        return wide


def source(
    kind: Any,
    values: ValueType | str,
    shape: tuple[int, int],
    *,
    n: int = 0,
    m: int = 0,
    group: int = 0,
    density: float = 0.3,
    seed: int = 0,
) -> Source:
    """A random linear; N:M groups keep 0 to n."""
    rng, values = np.random.default_rng(seed), ValueType(values)
    kept = _kept(rng, kind, shape, n, m, density)
    spec = PackedLinear(kind, values, shape, int(kept.sum()), n, m, group)
    scales = None
    if values.quantised:
        scales = rng.uniform(0.01, 3, (shape[0], spec.scale_groups)).astype(BF16)
    return Source(spec, codes(rng, values, shape), kept, scales)


def codes(rng: np.random.Generator, values: ValueType, shape: tuple[int, ...]) -> np.ndarray:
    """Random stored values over the whole range of the type, zeros of both signs among them."""
    if values is ValueType.INT4:
        return rng.integers(-7, 8, shape).astype(np.int8)
    if values is ValueType.INT8:
        return rng.integers(-127, 128, shape).astype(np.int8)
    wide = rng.standard_normal(shape) * 2.0 ** rng.integers(-4, 5, shape)
    wide[rng.random(shape) < 0.1] = 0.0
    wide[rng.random(shape) < 0.1] = -0.0
    return wide.astype(np.float32).astype(values.codes)


def _kept(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], n: int, m: int, density: float
) -> np.ndarray:
    if kind == "dense":
        return np.ones(shape, np.bool_)
    kept = np.zeros(shape, np.bool_)
    if kind == "ragged":
        return rng.random(shape) < density
    for row in range(shape[0]):
        for first in range(0, shape[1], m):
            width = min(m, shape[1] - first)
            most = int(rng.integers(0, min(n, width) + 1)) if rng.random() < 0.3 else min(n, width)
            kept[row, first + rng.permutation(width)[:most]] = True
    return kept


@st.composite
def sources(draw: st.DrawFn, most: tuple[int, int] = (40, 150)) -> Source:
    """Any kind, any value type, any shape up to `most`, tile edges as often as not."""
    kind = draw(st.sampled_from(KINDS))
    values = draw(st.sampled_from(list(ValueType)))
    rows = draw(st.one_of(st.sampled_from([16, 32]), st.integers(1, most[0])))
    columns = draw(st.one_of(st.sampled_from([64, 128]), st.integers(1, most[1])))
    n, m = draw(st.sampled_from(NM)) if kind == "nm" else (0, 0)
    group = draw(st.sampled_from([0, 64, 128])) if values.quantised else 0
    density = draw(st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    return source(kind, values, (rows, columns), n=n, m=m, group=group, density=density, seed=seed)
