"""Distance of a rounded value, against numpy's own spacing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.store.dtypes import DType, round_float32, to_float32
from exporter.verify.ulp import HALF_ULP, rounding_ulp

TYPES = {DType.BF16: np.dtype(ml_dtypes.bfloat16), DType.F16: np.dtype(np.float16)}


@given(
    values=st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=20),
    dtype=st.sampled_from(list(TYPES)),
)
def test_rounding_to_nearest_is_within_half(values: list[float], dtype: DType):
    exact = np.array(values, np.float32)
    assert (
        rounding_ulp(to_float32(round_float32(exact, dtype, tensor="")), exact, dtype) <= HALF_ULP
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 1.37, 2.0**-20, 3e4])
def test_next_value_is_one_ulp_off(dtype: DType, scale: float):
    value = np.array([scale], TYPES[dtype])
    above = np.nextafter(value, np.array([np.inf], TYPES[dtype]))
    found = rounding_ulp(above.astype(np.float32), value.astype(np.float32), dtype)
    assert found == 1.0


def test_truncation_is_seen():
    """Cutting a float32 to its upper half is a bfloat16, and up to one ULP off."""
    exact = np.array([1.0 + 2.0**-7 - 2.0**-20], np.float32)
    cut = (exact.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert HALF_ULP < rounding_ulp(cut, exact, DType.BF16) < 1.0


def test_exact_and_wider_types_are_zero_and_infinity_is_beyond_any_bound():
    exact = np.array([1.5, 0.0], np.float32)
    assert rounding_ulp(exact, exact, DType.BF16) == 0.0
    assert rounding_ulp(exact + 1, exact, DType.F32) == 0.0
    wrong = np.array([np.inf, 0.0], np.float32)
    assert rounding_ulp(wrong, exact, DType.F16) == np.inf
