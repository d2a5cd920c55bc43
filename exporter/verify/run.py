"""Verification from end to end: of a staged folder beside its source, and of a published one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from exporter.contract import Progress, ReferenceSession, Rounds, Target
from exporter.errors import VerificationFailed
from exporter.model import FusedModel
from exporter.verify.bisect import bisect as find_layer
from exporter.verify.engine import LoadTarget, Runner, choose_runner, opened
from exporter.verify.files import META, changed_files, fingerprints
from exporter.verify.numbers import check_numbers
from exporter.verify.prompts import Prompts, make_prompts
from exporter.verify.published import check_published
from exporter.verify.result import (
    BisectResult,
    NumbersResult,
    VerificationMissed,
    VerifyReport,
)
from exporter.verify.selftest import SelfTest, record
from exporter.verify.selftest_file import NAME, read_selftest, write_selftest
from exporter.verify.spread import measured
from exporter.verify.structure import check_structure
from exporter.verify.summary import make_report
from exporter.verify.truth import Spill, Stored, Truth

ReferenceOpener = Callable[[FusedModel], ReferenceSession]
_REPORT_IT = "This is a bug: please report it, with the layer named above."
_AGAIN = "Compare the engine's version with the one the artefact is meant for, or export again."


def verify_staged(
    target: Target,
    model: FusedModel,
    folder: Path,
    *,
    reference_opener: ReferenceOpener,
    load_target: LoadTarget | None = None,
    bisect: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Re-read what lies in `folder`, run it, compare it; write the self-test into it.

    First the structure, since it names a fault best; then the reference on eight prompts (with
    the stored values, where the target rounds them: structure has judged the rounding), whose
    logits wait in an unnamed file beside `folder`; then the engine. Reference and engine are
    never in memory together.

    Raises:
        VerificationMissed: `verify-structure` or `verify-numbers`, with the report.
        VerificationFailed: `reference-broken`.
        EngineUnfit: the engine is missing, or died, hung or refused.
    """
    runner = choose_runner(target, load_target)
    structure = check_structure(target, model, folder, progress)
    if structure.failures:
        raise VerificationMissed(make_report(target, runner, structure))
    stored = _as_written(target, model)
    limit = model.spec.max_positions
    judge = partial(_numbers, runner, stored, folder, reference_opener, progress)
    test, numbers = judge(limit)
    if numbers is None:  # the engine's sequences are shorter than the model's
        with opened(runner.target, folder) as session:
            limit = session.max_tokens
        test, numbers = judge(limit)
    if numbers is None:
        raise VerificationFailed("verify-numbers", f"{limit} tokens are too few for a prompt")
    found = None
    if numbers.failures and bisect:
        found = _bisect(runner, stored, folder, test.prompts, reference_opener)
    report = make_report(target, runner, structure, test, numbers, found)
    return _judge(report, _REPORT_IT if bisect else None)


def verify_folder(
    folder: Path,
    target: Target,
    *,
    load_target: LoadTarget | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Prove a published artefact again without its source: bytes, tensors, numbers.

    Raises:
        VerificationMissed: `verify-hash`, `verify-structure` or `verify-numbers`.
        VerificationFailed: `manifest-invalid`, `header-*` where what it is proved by is broken.
        EngineUnfit: the engine is missing, or died, hung or refused.
    """
    structure = check_published(target, folder, progress)
    runner = choose_runner(target, load_target)
    if structure.failures:
        raise VerificationMissed(make_report(target, runner, structure, published=True))
    test = read_selftest(folder / META / NAME)
    numbers = _run_engine(runner, folder, test, Stored(test), progress)
    if numbers is None:
        raise VerificationFailed(
            "manifest-invalid",
            "the self-test has longer sequences than the artefact takes",
            file=NAME,
        )
    return _judge(make_report(target, runner, structure, test, numbers, published=True), _AGAIN)


def _as_written(target: Target, model: FusedModel) -> FusedModel:
    """What the engine is given: the model itself, or its values rounded as they are stored."""
    rounded = getattr(target, "as_written", None)
    return cast(Rounds, target).as_written(model) if callable(rounded) else model


def _numbers(
    runner: Runner,
    model: FusedModel,
    folder: Path,
    reference_opener: ReferenceOpener,
    progress: Progress | None,
    limit: int,
) -> tuple[SelfTest, NumbersResult | None]:
    """The engine against a live reference; None where its sequences are shorter than `limit`.

    Where a few positions leave the tolerance, the reference says how far rounding alone moves
    them, the self-test keeps that, and the engine runs again to be judged by it.
    """
    with _recorded(model, folder, limit, reference_opener, progress) as (test, truth):
        numbers = _run_engine(runner, folder, test, truth, progress)
        if numbers is not None and numbers.failures and numbers.doubtful:
            reference = reference_opener(model)
            try:
                test = measured(test, reference, numbers.doubtful, progress)
            finally:
                reference.close()
            test = _keep(test, folder)
            numbers = _run_engine(runner, folder, test, truth, progress)
    return test, numbers


@contextmanager
def _recorded(
    model: FusedModel,
    folder: Path,
    limit: int,
    reference_opener: ReferenceOpener,
    progress: Progress | None,
) -> Generator[tuple[SelfTest, Truth], None, None]:
    """The reference's answers, written to the folder and read back; it is closed by then."""
    prompts = make_prompts(_tokenizer(model, folder), model.spec.vocab, limit)
    spill = Spill(folder.absolute().parent, model.spec.vocab)
    try:
        reference = reference_opener(model)
        try:
            test = record(reference, prompts, spill, progress)
        finally:
            reference.close()
        yield _keep(test, folder), spill
    finally:
        spill.close()


def _keep(test: SelfTest, folder: Path) -> SelfTest:
    """Write the self-test in place of an earlier one; as it is read back."""
    path = folder / META / NAME
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    write_selftest(path, test)
    return read_selftest(path)


def _tokenizer(model: FusedModel, folder: Path) -> Path | None:
    """tokenizer.json as it will be shipped, else the source's."""
    shipped = folder / "tokenizer.json"
    if shipped.is_file():
        return shipped
    sidecars = {s.name: s.path for s in model.checked.checkpoint.sidecars}
    return sidecars.get(shipped.name)


def _run_engine(
    runner: Runner, folder: Path, test: SelfTest, truth: Truth, progress: Progress | None
) -> NumbersResult | None:
    """Numbers of the engine; None where its sequences are shorter than the self-test's."""
    longest = max(len(t) for t in test.prompts.tokens) + test.prompts.new_tokens
    before = fingerprints(folder)
    with opened(runner.target, folder) as session:
        if session.max_tokens < longest:
            return None
        numbers = check_numbers(session, test, truth, runner.target.tolerance, progress)
    changed = changed_files(folder, before)
    return numbers.model_copy(update={"failures": (*changed, *numbers.failures)})


def _bisect(
    runner: Runner,
    model: FusedModel,
    folder: Path,
    prompts: Prompts,
    reference_opener: ReferenceOpener,
) -> BisectResult:
    reference = reference_opener(model)
    try:
        middle = prompts.tokens[len(prompts.tokens) // 2]
        return find_layer(runner.target, reference, folder, middle)
    finally:
        reference.close()


def _judge(report: VerifyReport, hint: str | None) -> VerifyReport:
    if report.verdict.passed:
        return report
    raise VerificationMissed(report, hint=hint)
