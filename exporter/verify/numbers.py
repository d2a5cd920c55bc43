"""Run an engine along the reference's greedy path, then freely, and say how far it is off.

Teacher-forced: the engine is fed the reference's tokens, so one early difference does not make
every later row incomparable, and prefill and cached decode are judged each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.contract import Progress, Session, Tolerance
from exporter.store.dtypes import F32
from exporter.verify.result import (
    Magnified,
    NearTie,
    NumbersResult,
    Phase,
    PhaseNumbers,
    PromptResult,
)
from exporter.verify.rows import TINY, Rows, join
from exporter.verify.selftest import SelfTest
from exporter.verify.spread import allowed, few, spread_of
from exporter.verify.truth import Truth

PHASES: tuple[Phase, ...] = ("prefill", "decode")
_SHOWN = 8  # failures of one kind that are spelled out


def check_numbers(
    session: Session,
    test: SelfTest,
    truth: Truth,
    tolerance: Tolerance,
    progress: Progress | None = None,
) -> NumbersResult:
    """Compare an engine with the reference; misses stand in `failures`, nothing is raised for them.

    A token that differs from the reference's is accepted only as a near tie: where the
    reference's own logits of the two lie within twice the allowed absolute error (each may move
    by it), and it is listed. Free runs are compared up to their first near tie. Where the self-test
    holds a spread, a row may be off by what `exporter.verify.spread` allows, and is listed too.

    Raises:
        EngineUnfit: the engine died, hung, or refused.
    """
    run = _Run(test, truth, tolerance)
    for i in range(len(test.prompts.tokens)):
        run.prompt(session, i)
        if progress is not None:
            progress("engine", i + 1, len(test.prompts.tokens))
    facts = session.facts()
    prefill, decode = run.phase("prefill"), run.phase("decode")
    return NumbersResult(
        truth=truth.kind,
        engine=facts.engine,
        version=facts.version,
        threads=facts.threads,
        ops_share=facts.ops_share,
        allowed_rel=tolerance.max_rel,
        prefill=prefill,
        decode=decode,
        prompts=tuple(run.prompts),
        near_ties=tuple(run.ties),
        magnified=tuple(run.magnified()),
        failures=tuple(run.all_failures()),
        doubtful=run.doubtful(),
        choices=dict(facts.extra.get("choices", {})),
    )


class _Run:
    """Gathers rows, ties and failures over the prompts."""

    def __init__(self, test: SelfTest, truth: Truth, tolerance: Tolerance) -> None:
        self._test = test
        self._truth = truth
        self._tolerance = tolerance
        self._rows: dict[Phase, list[Rows]] = {"prefill": [], "decode": []}
        self._differ: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self._shape_faults: list[str] = []
        self._free_faults: list[str] = []
        self._stuck: list[int] = []  # prompts whose decode gave one row again and again
        self._where: dict[Phase, list[tuple[int, int]]] = {"prefill": [], "decode": []}
        self._spread: dict[Phase, list[NDArray[np.float64]]] = {"prefill": [], "decode": []}
        self.prompts: list[PromptResult] = []
        self.ties: list[NearTie] = []

    def prompt(self, session: Session, i: int) -> None:
        """One prompt: prefill, cached decode, free run."""
        tokens, answer = self._test.prompts.tokens[i], self._test.greedy[i].tolist()
        got = self._shaped(session.prefill(tokens), len(tokens), i, "prefill")
        self._take("prefill", i, 0, got)
        steps = [np.asarray(session.decode(token)) for token in answer[:-1]]
        rows = np.concatenate([self._shaped(s[None], 1, i, "decode") for s in steps])
        self._take("decode", i, len(tokens), rows)
        if len(rows) > 2 and (rows == rows[0]).all():
            self._stuck.append(i)
        self._free_run(i, session.generate(tokens, len(answer)).tokens)

    def phase(self, phase: Phase) -> PhaseNumbers:
        """Figures of one phase over all prompts."""
        rows = join(self._rows[phase])
        ties = sum(t.phase == phase for t in self.ties)
        judged = len(rows.want) - ties
        return PhaseNumbers(
            positions=len(rows.want),
            max_abs=float(rows.max_abs.max()),
            max_rel=float(rows.max_rel.max()),
            kl_max=float(rows.kl.max()),
            kl_mean=float(rows.kl.mean()),
            top1=1.0 if not judged else 1.0 - self._differ[phase] / judged,
            top1_near_ties=ties,
        )

    def magnified(self) -> list[Magnified]:
        """Rows beyond the tolerance that their spread excuses."""
        out: list[Magnified] = []
        for phase in PHASES:
            error, spread, bound = self._judged(phase)
            for r in np.flatnonzero((error > self._tolerance.max_rel) & (error <= bound)).tolist():
                prompt, row = self._where[phase][r]
                out.append(
                    Magnified(
                        prompt=prompt,
                        position=row,
                        phase=phase,
                        error=float(error[r]),
                        spread=float(spread[r]),
                        allowed=float(bound[r]),
                    )
                )
        return out

    def doubtful(self) -> tuple[int, ...]:
        """Prompts whose spread would be worth knowing: some rows, not many, are out of bounds."""
        over: list[int] = []
        for phase in PHASES:
            error, _, bound = self._judged(phase)
            over += [self._where[phase][r][0] for r in np.flatnonzero(error > bound).tolist()]
        known = self._test.spread is not None
        return () if known or not few(len(over), self._positions()) else tuple(sorted(set(over)))

    def _judged(
        self, phase: Phase
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Relative error (0 where it is not finite), spread and bound of each row."""
        rows, spread = join(self._rows[phase]), np.concatenate(self._spread[phase])
        error = np.where(rows.finite, rows.max_rel, 0.0)
        return error, spread, allowed(self._tolerance.max_rel, spread)

    def _positions(self) -> int:
        return sum(len(self._where[phase]) for phase in PHASES)

    def all_failures(self) -> list[str]:
        """What is wrong, the most telling first."""
        out = self._shape_faults[:_SHOWN]
        for phase in PHASES:
            out += self._row_faults(phase)
        if not few(len(excused := self.magnified()), self._positions()):
            out.append(
                f"{len(excused)} of {self._positions()} positions leave the tolerance of "
                f"{self._tolerance.max_rel:.3g} and are excused by the model's own rounding: "
                "too many to trust it"
            )
        if self._stuck:
            out.append(
                f"decode: every step gave the same logits (prompt {self._stuck[0]}): "
                "the engine does not take up the token or its cache"
            )
        return out + self._free_faults[:_SHOWN]

    def _shaped(self, logits: Any, count: int, prompt: int, phase: Phase) -> F32:
        """`logits` as float32 `[count, V]`; rows of NaN where the engine gave another shape."""
        values = np.asarray(logits)
        want = (count, self._test.vocab)
        if values.shape == want and values.dtype == np.float32:
            return values
        self._shape_faults.append(
            f"prompt {prompt}, {phase}: logits of shape {list(values.shape)} and type "
            f"{values.dtype}, not {list(want)} float32"
        )
        return np.full(want, np.nan, dtype=np.float32)

    def _take(self, phase: Phase, prompt: int, first: int, engine: F32) -> None:
        rows = self._truth.compare(prompt, first, engine)
        self._rows[phase].append(rows)
        self._where[phase] += [(prompt, first + r) for r in range(len(engine))]
        self._spread[phase].append(spread_of(self._test, prompt, first, len(engine)))
        for r in np.flatnonzero(rows.want != rows.got).tolist():
            bound = self._allowed_gap(prompt, first + r, float(rows.peak[r]))
            if rows.gap[r] <= bound:
                ids = int(rows.want[r]), int(rows.got[r])
                self._tie(phase, prompt, first + r, ids, float(rows.gap[r]), bound)
            else:
                self._differ[phase] += 1

    def _allowed_gap(self, prompt: int, row: int, peak: float) -> float:
        spread = spread_of(self._test, prompt, row, 1)
        return 2.0 * float(allowed(self._tolerance.max_rel, spread)[0]) * max(peak, TINY)

    def _tie(
        self,
        phase: Phase,
        prompt: int,
        row: int,
        ids: tuple[int, int],
        gap: float,
        bound: float,
    ) -> None:
        self.ties.append(
            NearTie(
                prompt=prompt,
                position=row,
                phase=phase,
                reference=ids[0],
                engine=ids[1],
                gap=gap,
                allowed=bound,
            )
        )

    def _free_run(self, prompt: int, got: Sequence[int]) -> None:
        want: list[int] = self._test.greedy[prompt].tolist()
        first = next((s for s, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), None)
        compared, equal = len(want), len(want) if first is None else first
        if len(got) != len(want):
            self._free_faults.append(
                f"prompt {prompt}: {len(got)} greedy tokens, {len(want)} were asked for"
            )
            equal = min(equal, len(got))
        if first is not None:
            tie = self._judge_token(prompt, first, want[first], int(got[first]))
            compared = first if tie else len(want)
        self.prompts.append(
            PromptResult(
                tokens=len(self._test.prompts.tokens[prompt]),
                new_tokens=len(want),
                compared=compared,
                equal=equal,
            )
        )

    def _judge_token(self, prompt: int, step: int, want: int, got: int) -> bool:
        """Whether the differing token of a free run is a near tie; else it is a failure."""
        row = len(self._test.prompts.tokens[prompt]) - 1 + step
        known = 0 <= got < self._test.vocab
        gap, peak = self._truth.gap(prompt, row, got if known else want)
        gap, bound = gap if known else float("inf"), self._allowed_gap(prompt, row, peak)
        if gap <= bound:
            self._tie("free run", prompt, row, (want, got), gap, bound)
            return True
        self._free_faults.append(
            f"prompt {prompt}: greedy token {step} is {got}, the reference's is {want} "
            f"(their logits differ by {gap:.3g} there, {bound:.3g} would be a near tie)"
        )
        return False

    def _row_faults(self, phase: Phase) -> list[str]:
        rows, where = join(self._rows[phase]), self._where[phase]
        out: list[str] = []
        broken = np.flatnonzero(~rows.finite)
        if len(broken) and not self._shape_faults:
            prompt, row = where[int(broken[0])]
            out.append(
                f"{phase}: NaN or infinite logits at {len(broken)} of {len(where)} positions, "
                f"first in prompt {prompt} at position {row}"
            )
        error, _, bound = self._judged(phase)
        flat = np.flatnonzero(rows.flat & (rows.max_rel > bound))
        if len(flat):
            prompt, row = where[int(flat[0])]
            out.append(
                f"{phase}: the engine repeats one value for all tokens at {len(flat)} of "
                f"{len(where)} positions, first in prompt {prompt} at position {row}"
            )
        worst = int((error / bound).argmax())
        if error[worst] > bound[worst]:
            prompt, row = where[worst]
            out.append(
                f"{phase}: relative error of logits {error[worst]:.3g}, allowed "
                f"{bound[worst]:.3g} (prompt {prompt}, position {row})"
            )
        top1 = self.phase(phase).top1
        if top1 < self._tolerance.top1:
            out.append(
                f"{phase}: the best token differs at {self._differ[phase]} of {len(where)} "
                f"positions (agreement {top1:.4f}, required {self._tolerance.top1:.4f})"
            )
        return out
