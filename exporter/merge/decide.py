"""Which policy each module gets; no silent default where merging would lose something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.contract import Progress
from exporter.errors import UsageError
from exporter.merge.base import MergePolicy, MergePolicyNeeded
from exporter.merge.combined import CombinedDelta
from exporter.merge.kept import KeptMasks
from exporter.merge.policies import CHOICES, EXACT, policy_by_name
from exporter.merge.shares import is_zero_outside, shares_of


@dataclass(frozen=True)
class Decision:
    """The policy of one module and why it was chosen."""

    policy: MergePolicy
    reason: str  # "dense base", "masked delta", "measured", "asked for"


def decide(
    deltas: Mapping[str, CombinedDelta],
    masks: KeptMasks,
    policy: str | None,
    progress: Progress | None,
) -> dict[str, Decision]:
    """A decision for each module.

    Raises:
        UsageError: `usage` for an unknown policy, or `separate` for a masked delta;
            `merge-policy-needed` (a `MergePolicyNeeded`).
    """
    asked = None if policy is None else policy_by_name(policy)
    decisions: dict[str, Decision] = {}
    for done, (module, delta) in enumerate(deltas.items()):
        found = _one(module, delta, masks, asked)
        if found is None:
            raise _needed(deltas, masks, policy, progress)
        decisions[module] = found
        if progress is not None:
            progress("choose merge policies", done + 1, len(deltas))
    return decisions


def _one(
    module: str, delta: CombinedDelta, masks: KeptMasks, asked: MergePolicy | None
) -> Decision | None:
    """None where the user has to choose."""
    if asked is not None and asked.keeps_branch:
        return _branch(module, delta, masks, asked)
    if masks.is_dense(module):
        return Decision(EXACT, "dense base")
    if delta.masked:
        return Decision(EXACT, "masked delta")
    if is_zero_outside(delta, masks):
        return Decision(EXACT, "measured")
    if asked is None or asked is EXACT:
        return None
    return Decision(asked, "asked for")


def _branch(module: str, delta: CombinedDelta, masks: KeptMasks, asked: MergePolicy) -> Decision:
    if delta.low_rank() is None:
        raise UsageError(
            "usage",
            f"--on-merge {asked.name}: the delta is no plain low-rank product (it has a mask, or "
            "depends on the weight), so no branch computes it",
            expected="an adapter of plain factors",
            tensor=module,
            hint="Leave --on-merge out: a masked delta merges exactly.",
        )
    if not masks.is_linear(module):
        return Decision(EXACT, "dense base")  # no graph has a branch on the head
    return Decision(asked, "asked for")


def _needed(
    deltas: Mapping[str, CombinedDelta],
    masks: KeptMasks,
    policy: str | None,
    progress: Progress | None,
) -> MergePolicyNeeded:
    shares = shares_of(deltas, masks, progress)
    lossy = [s for s in shares if s.new_nonzeros]
    low, high = min(s.outside for s in lossy), max(s.outside for s in lossy)
    names = ", ".join(p.name for p in CHOICES)
    asked = f"--on-merge {policy} is not possible: " if policy else ""
    return MergePolicyNeeded(
        f"{asked}on {len(lossy)} of {len(shares)} modules {low:.1%} to {high:.1%} of the delta's "
        f"norm lies where the base is pruned; {names} differ in what they give up",
        shares,
    )
