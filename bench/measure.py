"""One workload once on a session: the prompt alone, then greedy tokens timed one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from bench.clock import Clock
from bench.workloads import Workload
from exporter.contract import Batches, Session
from exporter.errors import EngineUnfit

# An engine's worker threads may still spin for the next call; the other side must not pay.
SETTLE_SECONDS = 0.05
_WARM_TOKENS = 8

Times = tuple[float | None, list[list[float]]]  # the prompt alone, token times by sequence


def measure(
    session: Session, workload: Workload, prompts: Sequence[Sequence[int]], clock: Clock
) -> Times:
    """Prefill, timed from here, and generation, timed inside the session.

    Raises:
        EngineUnfit: `engine-refused` where the session breaks its contract on times.
    """
    clock.sleep(SETTLE_SECONDS)
    prefill: float | None = None
    if workload.measures != "generate":
        start = clock.now()
        session.prefill(prompts[0], logits="last")
        prefill = clock.now() - start
    if workload.measures == "prefill":
        return prefill, []
    times = _generate(session, prompts, workload.new_tokens)
    for seconds in times:
        _check_times(seconds, workload.new_tokens)
    return prefill, times


def warm_once(
    session: Session, workload: Workload, prompts: Sequence[Sequence[int]], clock: Clock
) -> float:
    """Touch weights, caches and kernels of both shapes once; seconds, which are thrown away."""
    start = clock.now()
    if workload.measures != "generate":
        session.prefill(prompts[0], logits="last")
    if workload.measures != "prefill":
        _generate(session, prompts, min(workload.new_tokens, _WARM_TOKENS))
    return clock.now() - start


def max_batch(session: Session) -> int:
    """How many sequences the session runs at once; 1 where it does not say."""
    return int(getattr(session, "max_batch", 1))


def _generate(session: Session, prompts: Sequence[Sequence[int]], n: int) -> list[list[float]]:
    if len(prompts) == 1:
        return [list(session.generate(prompts[0], n).seconds)]
    made = cast(Batches, session).generate_batch(prompts, n)
    return [list(one.seconds) for one in made]


def _check_times(seconds: Sequence[float], expected: int) -> None:
    rising = all(b >= a for a, b in zip(seconds, seconds[1:], strict=False))
    if len(seconds) != expected or not rising or seconds[0] <= 0 or seconds[-1] <= seconds[0]:
        raise EngineUnfit(
            "engine-refused",
            f"the session gave {len(seconds)} times, not {expected} rising ones",
            hint="This is a bug of the target's session: please report it.",
        )
