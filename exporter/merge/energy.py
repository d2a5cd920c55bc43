"""The squared error that a change of weights makes in a layer's outputs."""

from __future__ import annotations

import numpy as np

from exporter.store.dtypes import F32


def energy(rows: F32, gram: F32) -> float:
    """`tr(R H R^T)` of rows `[r, in]`, `H = X^T X`: the squared norm of `X R^T`.

    The product in float32, the sum in float64. Rounding may leave it below 0: then 0.
    """
    product = np.matmul(rows, gram)
    return max(0.0, float(np.einsum("ij,ij->", product, rows, dtype=np.float64)))
