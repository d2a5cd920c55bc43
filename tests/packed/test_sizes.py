"""Bytes per weight: the parts of SmolLM2-135M's linears, and of ragged edges."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest

from backends.packed.spec import PackedLinear, ValueType
from tests.packed.make import source

SMOLLM2 = [(576, 576), (192, 576), (1536, 576), (576, 1536)]  # q and o, k and v, gate and up, down


def nbytes(spec: PackedLinear, slots: int | None = None) -> int:
    return sum(dtype.nbytes * prod(shape) for dtype, shape in spec.tensors(slots).values())


def ratio(spec: PackedLinear, slots: int | None = None) -> float:
    """Bytes of all parts over those of the weight in bfloat16."""
    return nbytes(spec, slots) / (2 * prod(spec.shape))


@pytest.mark.parametrize("shape", SMOLLM2)
@pytest.mark.parametrize(
    ("n", "m", "values", "want"),
    [
        (2, 4, "bf16", 0.5625),
        (4, 8, "bf16", 0.5625),
        (1, 4, "bf16", 0.3125),
        (2, 8, "bf16", 0.3125),
        (1, 8, "bf16", 0.1875),
        (2, 4, "fp32", 1.0625),
    ],
)
def test_nm(shape, n, m, values, want) -> None:
    spec = PackedLinear("nm", ValueType(values), shape, 0, n, m)
    assert ratio(spec) == want


@pytest.mark.parametrize("shape", SMOLLM2)
@pytest.mark.parametrize(
    ("values", "group", "most"),
    [("bf16", 0, 0.37), ("int8", 0, 0.22), ("fp8", 0, 0.22), ("int4", 128, 0.155)],
)
def test_unstructured_70_percent(shape, values, group, most) -> None:
    """Counted on packed parts, so that int4's padding is in."""
    kept = np.zeros(prod(shape), np.bool_)
    kept[np.random.default_rng(3).permutation(kept.size)[: round(0.3 * kept.size)]] = True
    kept = kept.reshape(shape)
    made = source("dense", values, shape, group=group)
    spec = PackedLinear("ragged", made.spec.values, shape, int(kept.sum()), group=group)
    parts = made._replace(spec=spec, kept=kept).pack()
    found = sum(array.nbytes for array in parts.values())
    assert found == nbytes(spec, int(parts["starts"][-1]))
    assert most - 0.02 < found / (2 * kept.size) <= most


def test_dense_costs_nothing() -> None:
    assert ratio(PackedLinear("dense", ValueType.BF16, (576, 576), 576 * 576)) == 1.0
