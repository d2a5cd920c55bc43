"""`selftest.safetensors`: prompts and what the float32 reference answered, kept small.

All logits of a model would outweigh it, so each position keeps its best 32, the log-sum-exp and
the largest magnitude; whole rows stay only for the last prompt, one of prefill, one of decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.contract import Progress, Session
from exporter.errors import VerificationFailed
from exporter.store.dtypes import F32
from exporter.verify.prompts import Prompts
from exporter.verify.rows import compare_full, logsumexp

TOP = 32
CACHE_REL = 1e-3  # float32 sums in another order; a cache that is not read is off by about 1
I32 = NDArray[np.int32]


@dataclass(frozen=True)
class SelfTest:
    """The reference on each prompt. Rows run prompt by prompt, prefill then decode.

    A prompt of T tokens with n new ones has T + n - 1 rows: row r holds the logits after token
    r of prompt and answer, so row T - 1 gives the first new token.
    """

    prompts: Prompts
    greedy: I32  # [P, n]
    top_ids: I32  # [N, K], best first, lower id first among equals
    top_logits: F32  # [N, K]
    logsumexp: F32  # [N]
    peak: F32  # [N], largest absolute logit
    last_prefill: F32  # [V], whole row of the last prompt's last token
    last_decode: F32  # [V], whole row of its last decode step
    cache_gap: float  # cached decode against one prefill, largest relative error
    spread: F32 | None = None  # [N], see `exporter.verify.spread`; None: nobody had to ask

    def start(self, prompt: int) -> int:
        """First row of a prompt."""
        return self.starts()[prompt]

    def starts(self) -> tuple[int, ...]:
        """First row of each prompt, and the number of all rows at the end."""
        return row_starts(self.prompts)

    @property
    def vocab(self) -> int:
        """Width of a row of logits."""
        return len(self.last_prefill)


class LogitsSink(Protocol):
    """Takes every row of the reference as it comes (`truth.Spill`)."""

    def begin_prompt(self) -> None:
        """The next rows are of the next prompt."""
        ...

    def add(self, logits: F32) -> None:
        """Rows `[T, V]`."""
        ...


def row_starts(prompts: Prompts) -> tuple[int, ...]:
    """First row of each prompt, and the number of all rows at the end."""
    return tuple(accumulate((len(t) + prompts.new_tokens - 1 for t in prompts.tokens), initial=0))


def record(
    reference: Session, prompts: Prompts, sink: LogitsSink, progress: Progress | None = None
) -> SelfTest:
    """Run the reference over all prompts: prefill, then greedy tokens by cached decode.

    Raises:
        VerificationFailed: `reference-broken` where its logits are not finite, or where its
            cached decode and its prefill of the same tokens disagree.
    """
    rows: list[tuple[I32, F32, F32, F32]] = []
    greedy: list[tuple[int, ...]] = []
    gaps: list[float] = []
    logits = steps = np.zeros((0, 0), dtype=np.float32)
    for i, tokens in enumerate(prompts.tokens):
        sink.begin_prompt()
        logits = _finite(reference.prefill(tokens), i)
        answer, steps = _answer(reference, logits[-1], prompts.new_tokens, i)
        for block in (logits, steps):
            sink.add(block)
            rows.append(_summary(block))
        greedy.append(answer)
        if i in (0, len(prompts.tokens) - 1):  # the shortest and the longest say enough
            gaps.append(_cache_gap(reference, (*tokens, *answer[:-1]), steps, i))
        if progress is not None:
            progress("reference", i + 1, len(prompts.tokens))
    ids, tops, lse, peak = (np.concatenate(part) for part in zip(*rows, strict=True))
    return SelfTest(
        prompts=prompts,
        greedy=np.array(greedy, dtype=np.int32),
        top_ids=ids,
        top_logits=tops,
        logsumexp=lse,
        peak=peak,
        last_prefill=logits[-1].copy(),
        last_decode=steps[-1].copy(),
        cache_gap=max(gaps),
    )


def _answer(reference: Session, last: F32, new: int, prompt: int) -> tuple[tuple[int, ...], F32]:
    """`new` greedy tokens and the `new - 1` rows that cached decode gave."""
    answer = [int(last.argmax())]
    steps: list[F32] = []
    while len(answer) < new:
        steps.append(_finite(reference.decode(answer[-1])[None], prompt)[0])
        answer.append(int(steps[-1].argmax()))
    return tuple(answer), np.stack(steps)


def _summary(logits: F32) -> tuple[I32, F32, F32, F32]:
    ids = np.stack([best_ids(row, TOP) for row in logits])
    tops = np.take_along_axis(logits, ids.astype(np.int64), axis=1)
    peak = np.abs(logits).max(axis=1)
    return ids, tops, logsumexp(logits).astype(np.float32), peak


def best_ids(row: F32, count: int) -> I32:
    """Ids of the `count` largest of `[V]`, best first, lower id first among equals."""
    count = min(count, len(row))
    least = np.partition(row, len(row) - count)[len(row) - count]
    among = np.flatnonzero(row >= least)
    order = np.argsort(-row[among], kind="stable")[:count]
    return among[order].astype(np.int32)


def _cache_gap(reference: Session, tokens: tuple[int, ...], steps: F32, prompt: int) -> float:
    """Whether decode reads the cache: one prefill of the same tokens must give the same rows."""
    whole = reference.prefill(tokens)[-len(steps) :]
    gap = float(compare_full(whole, steps).max_rel.max())
    if not gap <= CACHE_REL:
        raise VerificationFailed(
            "reference-broken",
            f"prompt {prompt}: cached decode and prefill differ by {gap:.3g}",
            expected=f"a relative error of at most {CACHE_REL}",
        )
    return gap


def _finite(logits: F32, prompt: int) -> F32:
    if not np.isfinite(logits).all():
        raise VerificationFailed(
            "reference-broken",
            f"prompt {prompt}: the fused model itself gives NaN or infinite logits",
            hint="Look for huge weights: `sparse-export inspect`; check the adapter's scale.",
        )
    return logits
