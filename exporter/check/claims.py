"""A claimed pattern must be the one found: `--expect`, and what adapters record of their base."""

from __future__ import annotations

from collections.abc import Iterable

from exporter.errors import InputRefused, UsageError
from exporter.sparsity.conventions import Claim, Misfit, misfit
from exporter.sparsity.pattern import LinearPattern

EXPECT_HELP = 'Refuse a model that is not so: 2:4 (N kept), "2:8 zeros", mixed:8, 70%, ...'


def parse_expected(text: str) -> Claim:
    """`--expect PATTERN`.

    Raises:
        UsageError: `usage`.
    """
    try:
        return Claim.parse(text)
    except ValueError as error:
        raise UsageError(
            "usage", f"--expect: {error}", expected="for example 2:4, mixed:8, 70%"
        ) from error


def check_claim(claim: Claim, linears: Iterable[LinearPattern], file: str | None = None) -> None:
    """Hold `claim`, made in `file`, against the patterns found.

    Raises:
        InputRefused: `pattern-mismatch`, with both readings of N:M.
    """
    found = misfit(claim, list(linears))
    if found is not None:
        raise pattern_mismatch(claim.text, found, file)


def pattern_mismatch(claimed: str, found: Misfit, file: str | None) -> InputRefused:
    """The error for a claim that does not hold."""
    return InputRefused(
        "pattern-mismatch",
        found.found,
        expected=f"{claimed}, as claimed",
        file=file,
        tensor=found.module,
        hint=found.hint,
    )
