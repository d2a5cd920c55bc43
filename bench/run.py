"""`ab`: two artefacts of one target, outputs checked first, then timed in interleaved pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from backends.process.client import open_in_process
from bench.artefacts import Artefact, open_artefact, require_pair
from bench.clock import REAL, Clock
from bench.correct import require_correct
from bench.design import Order, paired_order
from bench.extras import need
from bench.fingerprint import fingerprint
from bench.measure import measure, warm_up
from bench.results import AbResult, Round, Sample, SelfTest, Settings
from bench.summary import notes_on, side_of, speedups_of
from bench.verdict import judge
from bench.workloads import Workload
from exporter.contract import Progress, Session
from exporter.errors import UsageError


@dataclass(frozen=True)
class AbOptions:
    """Everything that `sparse-bench ab` can be told."""

    rounds: int = 10
    warmup_rounds: int = 2
    prompt_tokens: int = 128
    new_tokens: int = 64
    threads: int | None = None  # None: the engine's own choice
    min_speedup: float | None = None  # on decode
    seed: int = 0
    title: str = ""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup_rounds < 0:
            raise UsageError("usage", f"{self.rounds} rounds, {self.warmup_rounds} of warm-up")
        _ = self.workload  # refuses one that cannot be timed

    @property
    def workload(self) -> Workload:
        """The request that each round sends."""
        return Workload(self.prompt_tokens, self.new_tokens, self.seed)


Opener = Callable[[Artefact, int | None], Session]


def open_session(artefact: Artefact, threads: int | None) -> Session:
    """The artefact's engine in a process of its own, so that its peak memory is its own."""
    return open_in_process(artefact.target_text, artefact.folder, threads=threads)


def ab(
    dense: Path,
    sparse: Path,
    options: AbOptions | None = None,
    progress: Progress | None = None,
    *,
    opener: Opener = open_session,
    clock: Clock = REAL,
) -> AbResult:
    """Compare two artefacts of one target.

    Both sessions stay open; every round runs both, in an order drawn at random and balanced
    (`bench.design`). Raw samples are kept in the result.

    Raises:
        VerificationFailed: `outputs-differ`, before anything is timed.
        UsageError, InputRefused: wrong folders or a workload too long for them.
        EngineUnfit: an engine is missing, unfit, or broke.
    """
    options = options or AbOptions()
    tell = progress or _silent
    need("scipy.stats")  # now, not after minutes of measuring
    machine = fingerprint()
    pair = (open_artefact(dense), open_artefact(sparse))
    require_pair(*pair)
    with ExitStack() as stack:
        sessions: list[Session] = []
        for i, artefact in enumerate(pair):
            tell("load", i, 2)
            session = opener(artefact, options.threads)
            stack.callback(session.close)
            sessions.append(session)
        prompt = _prompt(sessions, options.workload)
        tests = tuple(_self_test(a, s, tell) for a, s in zip(pair, sessions, strict=True))
        rounds = _rounds(sessions, options, prompt, tell, clock)
        facts = tuple(s.facts() for s in sessions)
    sides = [
        side_of(a, f, t, [getattr(r, which) for r in rounds], options.workload, options.seed)
        for which, a, f, t in zip(("dense", "sparse"), pair, facts, tests, strict=True)
    ]
    speedup = speedups_of(rounds, options.seed)
    return AbResult(
        title=options.title or f"{pair[1].label} against {pair[0].label}",
        settings=_settings(options),
        dense=sides[0],
        sparse=sides[1],
        speedup=speedup,
        verdict=judge(speedup.decode, options.min_speedup),
        notes=notes_on(sides[0], sides[1], speedup, machine),
        fingerprint=machine,
        rounds=rounds,
    )


def _self_test(artefact: Artefact, session: Session, tell: Progress) -> SelfTest:
    def named(what: str, done: int, total: int) -> None:
        tell(f"self-test of {artefact.label}: {what}", done, total)

    named("engine", 0, 1)
    return require_correct(artefact, session, named)


def _prompt(sessions: list[Session], workload: Workload) -> tuple[int, ...]:
    """The prompt, once it is known that both sides can take it."""
    for session in sessions:
        workload.fits(session.max_tokens)
    return workload.prompt(_vocab(sessions))


def _rounds(
    sessions: list[Session],
    options: AbOptions,
    prompt: Sequence[int],
    tell: Progress,
    clock: Clock,
) -> list[Round]:
    for i in range(options.warmup_rounds):
        tell("warm-up", i, options.warmup_rounds)
        for session in sessions:
            warm_up(session, prompt, options.new_tokens)
    rounds: list[Round] = []
    for i, order in enumerate(paired_order(options.rounds, options.seed)):
        tell("rounds", i, options.rounds)
        rounds.append(_round(sessions, order, prompt, options.new_tokens, clock))
    tell("rounds", options.rounds, options.rounds)
    return rounds


def _round(
    sessions: list[Session], order: Order, prompt: Sequence[int], new_tokens: int, clock: Clock
) -> Round:
    samples: dict[str, Sample] = {}
    for side in order:
        session = sessions["AB".index(side)]
        samples[side] = measure(session, prompt, new_tokens, clock)
    return Round(order=order, dense=samples["A"], sparse=samples["B"])


def _vocab(sessions: list[Session]) -> int:
    sizes = {int(s.prefill((0,), logits="last").shape[-1]) for s in sessions}
    if len(sizes) != 1:
        raise UsageError(
            "usage",
            f"the two artefacts have vocabularies of {sorted(sizes)}",
            expected="two artefacts of one model",
        )
    return sizes.pop()


def _settings(options: AbOptions) -> Settings:
    return Settings(
        rounds=options.rounds,
        warmup_rounds=options.warmup_rounds,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        seed=options.seed,
    )


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total
