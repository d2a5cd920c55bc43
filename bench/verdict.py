"""What the intervals say about the wish, and the exit codes of sparse-bench."""

from __future__ import annotations

from enum import IntEnum

from bench.results import Interval, Verdict
from exporter.errors import (
    InputRefused,
    SparseExportError,
    UsageError,
)


class Exit(IntEnum):
    """Exit codes of sparse-bench; scripts may rely on them."""

    FINE = 0
    REGRESSION = 1
    USAGE = 2
    NOT_MEASURED = 3
    UNDECIDED = 4
    OUTPUTS_DIFFER = 5
    INTERRUPTED = 130


# What stops a measurement that the command line is not to blame for.
_NOT_MEASURED = frozenset({"machine-unlike"})


def judge(decode: Interval, min_speedup: float | None) -> Verdict:
    """Verdict on the decode speedup: a regression only where the whole interval is below."""
    if min_speedup is None:
        return _verdict("no-gate", Exit.FINE, "no --min-speedup was asked for", None)
    span = f"[{decode.low:.3f}, {decode.high:.3f}]"
    if not decode.supported:
        reason = f"{decode.n} blocks are too few for a {decode.confidence:.0%} interval"
        return _verdict("undecided", Exit.UNDECIDED, reason, min_speedup)
    if decode.low >= min_speedup:
        reason = f"the whole interval {span} reaches {min_speedup:g}"
        return _verdict("passed", Exit.FINE, reason, min_speedup)
    if decode.high < min_speedup:
        reason = f"the whole interval {span} lies below {min_speedup:g}"
        return _verdict("regression", Exit.REGRESSION, reason, min_speedup)
    reason = f"the interval {span} holds {min_speedup:g}: too noisy to decide; add --processes"
    return _verdict("undecided", Exit.UNDECIDED, reason, min_speedup)


def judge_again(first: Verdict, decode: Interval) -> Verdict:
    """A suspicion after the independent re-run: confirmed, open, or not confirmed."""
    second = judge(decode, first.min_speedup)
    if second.status == "regression":
        reason = f"{first.reason}; the re-run agrees, [{decode.low:.3f}, {decode.high:.3f}]"
        update = {"reason": reason}
    elif second.status == "passed":
        reason = f"{first.reason}, but of the re-run {second.reason}: not confirmed"
        update = {"status": "unconfirmed", "exit_code": int(Exit.FINE), "reason": reason}
    else:
        reason = f"{first.reason}, but of the re-run {second.reason}"
        update = {"status": "undecided", "exit_code": int(Exit.UNDECIDED), "reason": reason}
    return first.model_copy(update={**update, "rerun": decode})


def exit_of(error: SparseExportError) -> Exit:
    """The exit code of an error that ended a benchmark."""
    if error.code in {"outputs-differ", "verify-numbers"}:
        return Exit.OUTPUTS_DIFFER
    if error.code in _NOT_MEASURED:
        return Exit.NOT_MEASURED
    if isinstance(error, UsageError | InputRefused):
        return Exit.USAGE
    return Exit.NOT_MEASURED


def _verdict(status: str, code: Exit, reason: str, wish: float | None) -> Verdict:
    return Verdict.model_validate(
        {"status": status, "exit_code": int(code), "reason": reason, "min_speedup": wish}
    )
