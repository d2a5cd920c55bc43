"""Linear CKA between the representations of decoder blocks, from Gram matrices of sequences.

LoSA (ICLR 2025) eq. 4, its public code (`CKA/cka.py`): of block i the input hidden states of n
sequences, each flattened to one row of `F_i [n, length * hidden]`; `K_i = F_i F_i^T`, centred by
`H = I - 1 1^T / n` on both sides; CKA is the cosine of two centred Gram matrices (the biased form
of normalised HSIC with a linear kernel).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused, VerificationFailed
from exporter.store.dtypes import F32

F64 = NDArray[np.float64]
CHUNK = 1 << 21  # of float64 elements in flight


def gram(hidden: F32) -> F64:
    """`F F^T` in float64 `[n, n]` of hidden states `[n, length, width]` float32.

    Summed over chunks of tokens: centring cancels most of a Gram matrix, so float32 would not do.
    """
    n, length, width = hidden.shape
    total = np.zeros((n, n))
    step = max(1, CHUNK // (n * width))
    for t in range(0, length, step):
        part = hidden[:, t : t + step].reshape(n, -1).astype(np.float64)
        total += part @ part.T
    return total


def linear_cka(grams: Sequence[F64]) -> F64:
    """CKA of every pair of `grams` (each `[n, n]`), float64 `[L, L]` with ones on the diagonal.

    Raises:
        InputRefused: `data-invalid` where there are less than two sequences.
        VerificationFailed: `values-not-finite`, with the block named; a block whose sequences are
            all represented alike has no CKA and counts as such.
    """
    if grams and len(grams[0]) < 2:
        raise InputRefused(
            "data-invalid",
            "one sequence",
            expected="at least two: CKA compares sequences",
            hint="Give more --samples.",
        )
    rows = [_centred(k, i) for i, k in enumerate(grams)]
    flat = np.stack([row / np.linalg.norm(row) for row in rows])
    return flat @ flat.T


def _centred(k: F64, block: int) -> F64:
    """`H K H`, flattened."""
    centred = k - k.mean(axis=0) - k.mean(axis=1, keepdims=True) + k.mean()
    norm = float(np.linalg.norm(centred))
    if not np.isfinite(norm) or norm == 0.0:
        raise VerificationFailed(
            "values-not-finite",
            f"layer rates: the centred Gram matrix has norm {norm}",
            expected="finite representations that differ between sequences",
            tensor=f"input of block {block}",
        )
    return centred.reshape(-1)
