"""How far a stored value is from the float32 it was rounded from, in units in the last place.

By exponents alone, so that it does not lean on the cast that it judges.
"""

from __future__ import annotations

import numpy as np

from exporter.store.dtypes import F32, DType

HALF_ULP = 0.5
# Bits of the significand with the leading one, and the exponent of the least normal number.
_FORMATS = {DType.BF16: (8, -126), DType.F16: (11, -14)}


def rounding_ulp(stored: F32, exact: F32, dtype: DType) -> float:
    """Largest `abs(stored - exact)` over the ULP of `exact` in `dtype`; 0 for float32 and wider.

    The ULP of x with `2^e <= abs(x) < 2^(e+1)` is `2^(e - p + 1)`, below the least normal number
    that of the least normal (IEEE 754-2019, 3.4). Infinite where one of
    the two is not finite.
    """
    if dtype not in _FORMATS:
        return 0.0
    differ = stored != exact
    if not differ.any():
        return 0.0
    bits, least = _FORMATS[dtype]
    want = exact[differ].astype(np.float64)
    exponent = np.maximum(np.frexp(want)[1] - 1, least)
    error = np.abs(stored[differ] - want) / np.ldexp(1.0, exponent - bits + 1)
    return float(np.where(np.isfinite(error), error, np.inf).max())
