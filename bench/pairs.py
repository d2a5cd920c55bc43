"""Fresh processes of one or two artefacts, pair after pair, until the intervals are narrow.

Both processes of a pair are open together; which opens first, and who runs first in each round, is
drawn at random and balanced (`bench.design`): what is slow on the machine for a minute is slow for
both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from backends.process.client import open_in_process
from bench.artefacts import Artefact
from bench.blocks import blocks_of, gated
from bench.clock import REAL, Clock
from bench.correct import require_correct
from bench.decide.ratio import ratio_of_medians
from bench.decide.rule import Rule, precise
from bench.design import Order, paired_order
from bench.journal import Journal, Line
from bench.measure import max_batch, measure, warm_once
from bench.meters import energy_meter, gpu_bytes
from bench.parts import SelfTest
from bench.readings import ProcessLine, Reading, Side
from bench.stolen import Stolen
from bench.warmup import Bounds, WarmUp, warm_up
from bench.workloads import Workload, why_not
from exporter.contract import Progress, Session
from exporter.errors import UsageError

Opener = Callable[[Artefact, int | None], Session]
SIDES: tuple[Side, Side] = ("base", "new")
MOST_ROUNDS = 64  # of one process, however short they are
_QUICK = 999  # resamples, where only the width is looked at


@dataclass(frozen=True)
class Plan:
    """What is measured and how often.

    `rounds` are those of one process, or of each by its number, and more (to `MOST_ROUNDS`) until
    each workload has had `seconds`: short readings are noisy ones. `most` processes are measured
    where `processes` do not make the intervals as narrow as the rule asks.
    """

    workloads: tuple[Workload, ...]
    processes: int = 8
    most: int = 24
    rounds: tuple[int, ...] = (2,)  # the last one goes for all further processes
    seconds: float = 0.0
    warmup: Bounds = field(default_factory=Bounds)
    threads: int | None = None
    seed: int = 0
    strict: bool = False  # refuse what a session cannot run, rather than leave it out

    def rounds_of(self, process: int) -> int:
        """Rounds of one process."""
        return self.rounds[min(process, len(self.rounds) - 1)]


@dataclass(frozen=True)
class Tools:
    """What a measurement stands on; tests put their own in place."""

    opener: Opener
    clock: Clock = REAL
    tell: Progress = lambda what, done, total: None
    journal: Journal | None = None


def open_session(artefact: Artefact, threads: int | None) -> Session:
    """The artefact's engine in a process of its own, so that its peak memory is its own."""
    return open_in_process(artefact.target_text, artefact.folder, threads=threads)


def measure_processes(
    artefacts: Sequence[Artefact], plan: Plan, rule: Rule, tools: Tools, run: int = 0
) -> list[Line]:
    """All lines of one run; those that the journal holds already are not measured again.

    Raises:
        VerificationFailed: `outputs-differ`, before anything is timed.
        UsageError: a workload that does not fit, vocabularies that differ.
        EngineUnfit: an engine is missing, unfit, or broke.
    """
    compared = len(artefacts) > 1 and plan.processes > 1
    kept = tools.journal.kept if tools.journal else []
    lines = [line for line in kept if line.run == run]
    done = {line.process for line in lines}
    process = 0
    # Fewer processes could not decide so many workloads, however clear the difference is.
    least = max(plan.processes, rule.blocks_needed(len(plan.workloads))) if compared else 1
    while process < plan.most:
        if process >= max(plan.processes, least) and _narrow(lines, plan, rule, len(artefacts)):
            break
        if process not in done:
            lines += _Pair(artefacts, plan, tools, run, process).lines()
        process += 1
    return lines


def _narrow(lines: Sequence[Line], plan: Plan, rule: Rule, sides: int) -> bool:
    """Whether each judged ratio is known as well as was asked for."""
    if sides == 1:
        return True
    cells = [blocks_of(lines, w.name, w.gate) for w in gated(lines, plan.workloads)]
    return precise([ratio_of_medians(b, n, paired=True, resamples=_QUICK) for b, n in cells], rule)


class _Pair:
    """One fresh process a side, from opening to closing."""

    def __init__(
        self, artefacts: Sequence[Artefact], plan: Plan, tools: Tools, run: int, process: int
    ) -> None:
        self._artefacts, self._plan, self._tools = artefacts, plan, tools
        self._run, self._process = run, process
        self._meter = energy_meter()
        self._seed = plan.seed + 1000 * run + process

    def lines(self) -> list[Line]:
        """Readings, then what the processes were; each is in the journal as soon as it is."""
        tell = self._tools.tell
        out: list[Line] = []
        with ExitStack() as stack:
            opened: dict[int, Session] = {}
            for i in self._turns(self._opening()):
                tell(f"{self._name}: load", len(opened), len(self._artefacts))
                opened[i] = self._tools.opener(self._artefacts[i], self._plan.threads)
                stack.callback(opened[i].close)
            sessions = [opened[i] for i in range(len(opened))]
            workloads = self._workloads(sessions)
            vocab = _vocab(sessions)
            tests = [self._self_test(a, s) for a, s in zip(self._artefacts, sessions, strict=True)]
            warm = self._warm_up(sessions, workloads, vocab)
            stolen = Stolen()
            for reading in self._readings(sessions, workloads, vocab):
                out.append(reading)
                self._keep(reading)
            share = stolen.share()
            for i, session in enumerate(sessions):
                line = self._process_line(SIDES[i], session, tests[i], warm[i], share)
                out.append(line)
                self._keep(line)
        return out

    @property
    def _name(self) -> str:
        return f"{'re-run, ' if self._run else ''}process {self._process + 1}"

    def _keep(self, line: Line) -> None:
        if self._tools.journal is not None:
            self._tools.journal.add(line)

    def _workloads(self, sessions: Sequence[Session]) -> list[Workload]:
        tokens = [s.max_tokens for s in sessions]
        batches = [max_batch(s) for s in sessions]
        if self._plan.strict:
            for workload in self._plan.workloads:
                workload.fits(min(tokens))
        return [w for w in self._plan.workloads if why_not(w, tokens, batches) is None]

    def _self_test(self, artefact: Artefact, session: Session) -> SelfTest | None:
        if self._process > 0 or self._run > 0:
            return None  # the same bytes by the same engine

        def named(what: str, done: int, total: int) -> None:
            self._tools.tell(f"self-test of {artefact.label}: {what}", done, total)

        named("engine", 0, 1)
        return require_correct(artefact, session, named)

    def _warm_up(
        self, sessions: Sequence[Session], workloads: Sequence[Workload], vocab: int
    ) -> list[WarmUp]:
        clock = self._tools.clock

        def once(session: Session) -> float:
            return sum(warm_once(session, w, w.sequences(vocab, 0), clock) for w in workloads)

        out: dict[int, WarmUp] = {}
        for i in self._turns(self._opening()):
            self._tools.tell(f"{self._name}: warm-up", len(out), len(sessions))
            out[i] = warm_up(lambda s=sessions[i]: once(s), self._plan.warmup, clock)
        return [out[i] for i in range(len(sessions))]

    def _opening(self) -> Order:
        """Which side opens first: drawn and balanced over processes.

        A process gets the pages that the one before it gave back, in the same order, and where
        pages lie made one side of an artefact against itself 9 % faster, process after process.
        """
        return paired_order(self._process + 1, self._plan.seed + 1000 * self._run + 500)[-1]

    def _turns(self, order: Order) -> list[int]:
        """Indices of the sides that there are, in that order."""
        return [i for i in map("AB".index, order) if i < len(self._artefacts)]

    def _readings(
        self, sessions: Sequence[Session], workloads: Sequence[Workload], vocab: int
    ):  # a generator, so that each reading is kept before the next one is begun
        least, clock = self._plan.rounds_of(self._process), self._tools.clock
        orders: tuple[Order, ...] = paired_order(max(least, MOST_ROUNDS), self._seed)
        until = clock.now() + self._plan.seconds * len(workloads)
        for number, order in enumerate(orders):
            whole = number >= least and (number - least) % 2 == 0  # blocks of two are balanced
            if whole and clock.now() >= until:
                break
            self._tools.tell(f"{self._name}: rounds", number, max(number, least))
            for workload in workloads:
                prompts = workload.sequences(vocab, number)
                for turn, i in enumerate(self._turns(order)):
                    yield self._reading(sessions[i], workload, prompts, number, i, turn == 0)

    def _reading(
        self,
        session: Session,
        workload: Workload,
        prompts: Sequence[Sequence[int]],
        number: int,
        side: int,
        first: bool,
    ) -> Reading:
        before = self._meter() if self._meter else 0.0
        prefill, sequences = measure(session, workload, prompts, self._tools.clock)
        return Reading(
            run=self._run,
            process=self._process,
            round=number,
            side=SIDES[side],
            first=first,
            workload=workload.name,
            prefill_seconds=prefill,
            sequences=sequences,
            energy_joules=self._meter() - before if self._meter else None,
        )

    def _process_line(
        self, side: Side, session: Session, test: SelfTest | None, warm: WarmUp,
        stolen: float | None,
    ) -> ProcessLine:  # fmt: skip
        gpu = gpu_bytes(getattr(session, "pid", None))
        facts = session.facts()
        return ProcessLine(
            run=self._run,
            process=self._process,
            side=side,
            engine=facts.engine,
            engine_version=facts.version,
            threads=facts.threads,
            ops_share=facts.ops_share,
            weight_bytes=facts.weight_bytes,
            peak_rss_bytes=facts.peak_rss_bytes,
            peak_gpu_bytes=gpu,
            load_seconds=facts.load_seconds,
            warmup_rounds=warm.rounds,
            warmup_seconds=warm.seconds,
            warm=warm.settled,
            stolen=stolen,
            max_tokens=session.max_tokens,
            max_batch=max_batch(session),
            selftest=test,
        )


def _vocab(sessions: Sequence[Session]) -> int:
    sizes = {int(s.prefill((0,), logits="last").shape[-1]) for s in sessions}
    if len(sizes) != 1:
        raise UsageError(
            "usage",
            f"the two artefacts have vocabularies of {sorted(sizes)}",
            expected="two artefacts of one model",
        )
    return sizes.pop()
