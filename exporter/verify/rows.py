"""Distance of two blocks of logits, row by row: pure functions, slow and plain in float64.

KL after Kullback and Leibler (1951), in nats; errors are relative to the largest logit of the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporter.store.dtypes import F32

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
TINY = 1e-30  # keeps a row of zeros from dividing by zero
_CHUNK = 4 << 20  # logits in flight as float64


@dataclass(frozen=True)
class Rows:
    """One entry per position. Where the engine's logits are not finite: inf, and `got` is -1."""

    max_abs: F64
    max_rel: F64
    kl: F64
    want: I64  # best token of the reference
    got: I64  # best token of the engine
    gap: F64  # reference logit of `want` less that of `got`; inf where that one is not stored
    peak: F64  # largest absolute logit of the reference
    finite: NDArray[np.bool_]
    flat: NDArray[np.bool_]  # the engine gave one value for all tokens


def logsumexp(logits: F32) -> F64:
    """`log sum exp` over the last axis of `[T, V]`, float64 `[T]`, in bounded memory."""
    return np.concatenate([_logsumexp(logits[a:b]) for a, b in _chunks(logits.shape)])


def compare_full(reference: F32, engine: F32) -> Rows:
    """Both `[T, V]`; KL over the whole vocabulary. The reference must be finite."""
    spans = _chunks((len(reference), reference.shape[1]))
    return join([_compare_full(reference[a:b], engine[a:b]) for a, b in spans])


def compare_stored(ids: I64, logits: F32, lse: F64, peak: F64, engine: F32) -> Rows:
    """`engine [T, V]` against the reference's `K` best tokens, `ids` and `logits` `[T, K]`.

    The rest of the vocabulary enters through its mass: the difference of the two log-sum-exps
    is at most the largest error of a logit, so it counts as one; KL takes the rest as one token.
    """
    finite, safe = _finite(engine)
    theirs = np.take_along_axis(safe, ids, axis=1).astype(np.float64)
    ours = logits.astype(np.float64)
    their_lse = logsumexp(safe)
    max_abs = np.maximum(np.abs(theirs - ours).max(axis=1), np.abs(their_lse - lse))
    p, q = np.exp(ours - lse[:, None]), np.exp(theirs - their_lse[:, None])
    kl = (p * ((ours - lse[:, None]) - (theirs - their_lse[:, None]))).sum(axis=1)
    rest_p = np.maximum(1.0 - p.sum(axis=1), 0.0)
    rest_q = np.maximum(1.0 - q.sum(axis=1), TINY)
    kl += np.where(rest_p > 0, rest_p * np.log(np.maximum(rest_p, TINY) / rest_q), 0.0)
    got = safe.argmax(axis=1).astype(np.int64)
    among = ids == got[:, None]
    gap = np.where(
        among.any(axis=1), ours[:, 0] - np.where(among, ours, -np.inf).max(axis=1), np.inf
    )
    return _seal(max_abs, kl, ids[:, 0].astype(np.int64), got, gap, peak, finite, safe)


def join(parts: list[Rows]) -> Rows:
    """The rows of all parts, in order."""
    fields = Rows.__dataclass_fields__
    return Rows(**{f: np.concatenate([getattr(p, f) for p in parts]) for f in fields})


def _chunks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    step = max(1, _CHUNK // max(1, shape[1]))
    return [(a, min(a + step, shape[0])) for a in range(0, shape[0], step)]


def _logsumexp(logits: F32) -> F64:
    wide = logits.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(wide - top).sum(axis=1, keepdims=True)))[:, 0]


def _compare_full(reference: F32, engine: F32) -> Rows:
    finite, safe = _finite(engine)
    ours, theirs = reference.astype(np.float64), safe.astype(np.float64)
    log_p = ours - logsumexp(reference)[:, None]
    log_q = theirs - logsumexp(safe)[:, None]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    want, got = ours.argmax(axis=1), theirs.argmax(axis=1)
    rows = np.arange(len(ours))
    gap = ours[rows, want] - ours[rows, got]
    max_abs, peak = np.abs(ours - theirs).max(axis=1), np.abs(ours).max(axis=1)
    return _seal(max_abs, kl, want, got, gap, peak, finite, safe)


def _finite(engine: F32) -> tuple[NDArray[np.bool_], F32]:
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(engine), axis=1)
    return finite, np.where(finite[:, None], engine, np.float32(0.0))


def _seal(
    max_abs: F64,
    kl: F64,
    want: I64,
    got: I64,
    gap: F64,
    peak: F64,
    finite: NDArray[np.bool_],
    engine: F32,
) -> Rows:
    max_abs = np.where(finite, max_abs, np.inf)
    return Rows(
        max_abs=max_abs,
        max_rel=max_abs / np.maximum(peak, TINY),
        kl=np.where(finite, np.maximum(kl, 0.0), np.inf),  # below 0 only by rounding
        want=want,
        got=np.where(finite, got, -1),
        gap=np.where(finite, gap, np.inf),
        peak=peak,
        finite=finite,
        flat=finite & (engine.max(axis=1) == engine.min(axis=1)),
    )
