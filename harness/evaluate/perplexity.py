"""Perplexity: exp of the mean negative log-likelihood in nats of the tokens a protocol scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.contract import Progress, Tokens
from exporter.errors import InputRefused, VerificationFailed
from exporter.store.dtypes import F32
from harness.evaluate.protocol import Protocol

F64 = NDArray[np.float64]
# Token ids [n] -> negative log-likelihood in nats of tokens 1..n-1, float64 [n - 1].
Scorer = Callable[[Tokens], F64]


@dataclass(frozen=True)
class Score:
    """What was measured, and of how much."""

    nats: float  # mean negative log-likelihood of a token
    tokens: int  # scored
    windows: int

    @property
    def perplexity(self) -> float:
        """exp of the mean."""
        return math.exp(min(self.nats, 700.0))


def perplexity(
    score: Scorer, ids: Tokens, protocol: Protocol, progress: Progress | None = None
) -> Score:
    """Score the text `ids [n]` window by window.

    Raises:
        InputRefused: `data-invalid` where not one window fits.
        VerificationFailed: `values-not-finite` where a likelihood is NaN or infinite.
    """
    spans = list(protocol.windows(ids.size))
    if not spans:
        raise InputRefused(
            "data-invalid",
            f"{ids.size} tokens of text",
            expected=f"at least one window of {protocol.length} tokens",
            hint="Give more text, or a smaller --length.",
        )
    total, count = 0.0, 0
    for done, (first, last, scored) in enumerate(spans, start=1):
        nats = score(ids[first:last])[scored - first - 1 :]
        part = float(np.sum(nats, dtype=np.float64))
        if not math.isfinite(part):
            raise VerificationFailed(
                "values-not-finite",
                f"evaluation: the likelihood of tokens {scored} to {last - 1} is {part}",
                expected="finite logits",
                tensor="logits",
            )
        total += part
        count += nats.size
        if progress is not None:
            progress(f"perplexity {math.exp(min(total / count, 700.0)):.2f}", done, len(spans))
    return Score(total / count, count, len(spans))


def nats_of(logits: F32, ids: Tokens) -> F64:
    """Negative log-likelihood of `ids[1:]` by logits `[n, vocab]` float32, in float64 `[n - 1]`."""
    return nats_of_rows(logits[:-1], ids[1:])


def nats_of_rows(logits: F32, ids: Tokens) -> F64:
    """Negative log-likelihood of `ids [n]`, each by its row of logits `[n, vocab]` float32."""
    rows = logits.astype(np.float64)
    top = rows.max(axis=1, keepdims=True)
    norm = np.log(np.exp(rows - top).sum(axis=1)) + top[:, 0]
    return norm - np.take_along_axis(rows, ids[:, None], axis=1)[:, 0]
