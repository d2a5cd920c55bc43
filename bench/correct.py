"""Correct before fast: an artefact runs its own self-test before it is timed."""

from __future__ import annotations

from bench.artefacts import Artefact
from bench.parts import SelfTest
from exporter.contract import Progress, Session
from exporter.errors import VerificationFailed
from exporter.verify.files import META
from exporter.verify.numbers import check_numbers
from exporter.verify.result import NumbersResult
from exporter.verify.selftest_file import NAME, read_selftest
from exporter.verify.truth import Stored


def require_correct(
    artefact: Artefact, session: Session, progress: Progress | None = None
) -> SelfTest:
    """Run the stored self-test on the session that will be timed.

    Raises:
        VerificationFailed: `outputs-differ`; or what is wrong with the self-test's file.
        EngineUnfit: the engine broke.
    """
    test = read_selftest(artefact.folder / META / NAME)
    found = check_numbers(session, test, Stored(test), artefact.target.tolerance, progress)
    result = SelfTest(
        max_rel_error=max(found.prefill.max_rel, found.decode.max_rel),
        tolerance=found.allowed_rel,
        positions=found.prefill.positions + found.decode.positions,
        greedy_tokens=sum(p.equal for p in found.prompts),
    )
    if found.failures:
        _refuse(artefact, found)
    return result


def _refuse(artefact: Artefact, found: NumbersResult) -> None:
    more = len(found.failures) - 1
    raise VerificationFailed(
        "outputs-differ",
        found.failures[0] + (f" (and {more} more)" if more else ""),
        expected=f"the float32 reference's logits within {found.allowed_rel:g}",
        file=artefact.label,
    )
