"""One side of one round on a session: prefill alone, then greedy tokens timed one by one."""

from __future__ import annotations

from collections.abc import Sequence

from bench.clock import Clock
from bench.results import Sample
from exporter.contract import Session
from exporter.errors import EngineUnfit

# An engine's worker threads may still spin for the next call; the other side must not pay.
SETTLE_SECONDS = 0.05


def measure(session: Session, prompt: Sequence[int], new_tokens: int, clock: Clock) -> Sample:
    """Prefill, timed from here, and generation, timed inside the session.

    Raises:
        EngineUnfit: `engine-refused` where the session breaks its contract on times.
    """
    clock.sleep(SETTLE_SECONDS)
    start = clock.now()
    session.prefill(prompt, logits="last")
    prefill = clock.now() - start
    generation = session.generate(prompt, new_tokens)
    seconds = list(generation.seconds)
    _check_times(seconds, new_tokens)
    return Sample(prefill_seconds=prefill, token_seconds=seconds)


def warm_up(session: Session, prompt: Sequence[int], new_tokens: int) -> None:
    """Touch weights, caches and kernels of both shapes once; the times are thrown away."""
    session.prefill(prompt, logits="last")
    session.generate(prompt, min(new_tokens, 8))


def _check_times(seconds: Sequence[float], expected: int) -> None:
    rising = all(b >= a for a, b in zip(seconds, seconds[1:], strict=False))
    if len(seconds) != expected or not rising or seconds[0] <= 0 or seconds[-1] <= seconds[0]:
        raise EngineUnfit(
            "engine-refused",
            f"the session gave {len(seconds)} times, not {expected} rising ones",
            hint="This is a bug of the target's session: please report it.",
        )
