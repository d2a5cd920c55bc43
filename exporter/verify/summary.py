"""One verdict and one line for people, from all that a verification found."""

from __future__ import annotations

from exporter.contract import Target
from exporter.verify.engine import Runner
from exporter.verify.result import (
    BisectResult,
    NumbersResult,
    SelftestInfo,
    StructureResult,
    Verdict,
    VerifyReport,
)
from exporter.verify.selftest import SelfTest


def make_report(
    target: Target,
    runner: Runner,
    structure: StructureResult,
    test: SelfTest | None = None,
    numbers: NumbersResult | None = None,
    found: BisectResult | None = None,
    *,
    published: bool = False,
) -> VerifyReport:
    """The report; passed if neither structure nor numbers have failures, and both were looked at.

    Args:
        published: a folder was proved again without its source.
    """
    verdict = _verdict(structure, numbers)
    open_ends = []
    if published:
        open_ends.append("values against the source model: it is not at hand")
    if runner.fallback:
        open_ends.append(f"the artefact in {target.window.engine} itself")
    if numbers is None:
        open_ends.append("the engine's numbers")
    return VerifyReport(
        verdict=verdict,
        summary=_summary(verdict, structure, numbers, runner),
        target=target.name,
        engine=f"{numbers.engine} {numbers.version}" if numbers else "",
        fallback=runner.fallback,
        structure=structure,
        selftest=_selftest(test),
        numbers=numbers,
        bisect=found,
        not_checked=tuple(open_ends),
    )


def _verdict(structure: StructureResult, numbers: NumbersResult | None) -> Verdict:
    if structure.failures:
        return Verdict(passed=False, code="verify-structure", failures=structure.failures)
    if numbers is None:
        return Verdict(passed=False, code="verify-numbers", failures=("nothing was run",))
    if numbers.failures:
        return Verdict(passed=False, code="verify-numbers", failures=numbers.failures)
    return Verdict(passed=True)


def _selftest(test: SelfTest | None) -> SelftestInfo | None:
    if test is None:
        return None
    return SelftestInfo(
        prompts=test.prompts.kind,
        lengths=tuple(len(t) for t in test.prompts.tokens),
        new_tokens=test.prompts.new_tokens,
        cache_gap=test.cache_gap,
    )


def _summary(
    verdict: Verdict, structure: StructureResult, numbers: NumbersResult | None, runner: Runner
) -> str:
    if not verdict.passed or numbers is None:
        return f"failed: {verdict.failures[0]}"
    equal = sum(p.equal for p in numbers.prompts)
    compared = sum(p.compared for p in numbers.prompts)
    asked = sum(p.new_tokens for p in numbers.prompts)
    parts = [
        f"passed: {structure.tensors} tensors as they should be",
        f"{equal} of {compared} greedy tokens equal on {len(numbers.prompts)} prompts",
        f"max relative error {numbers.prefill.max_rel:.2g} in prefill and "
        f"{numbers.decode.max_rel:.2g} in cached decode (allowed {numbers.allowed_rel:.2g})",
    ]
    if numbers.near_ties:
        parts.append(
            f"{len(numbers.near_ties)} near ties, {asked - compared} tokens after them not compared"
        )
    if numbers.magnified:
        worst = max(m.allowed for m in numbers.magnified)
        parts.append(
            f"positions where the model itself magnifies float32's rounding: "
            f"{len(numbers.magnified)} "
            f"(up to {worst:.2g} allowed there)"
        )
    if structure.packed:
        parts.append(f"linears take {structure.packed.ratio:.4g} of their dense bytes")
    if runner.fallback:
        parts.append(f"run by {numbers.engine} in place of the target's own engine")
    return "; ".join(parts)
