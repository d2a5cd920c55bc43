"""The policies by name."""

from __future__ import annotations

from exporter.errors import UsageError
from exporter.merge.base import MergePolicy
from exporter.merge.densify import DensifyPolicy
from exporter.merge.exact import ExactPolicy
from exporter.merge.mask import MaskPolicy
from exporter.merge.refit import RefitPolicy, calibration_needed
from exporter.merge.reprune import ReprunePolicy
from exporter.merge.separate import SeparatePolicy

EXACT = ExactPolicy()
# In the order in which the refusal offers them.
CHOICES: tuple[MergePolicy, ...] = (
    MaskPolicy(),
    RefitPolicy(),
    ReprunePolicy(),
    SeparatePolicy(),
    DensifyPolicy(),
)
POLICIES: dict[str, MergePolicy] = {p.name: p for p in (EXACT, *CHOICES)}


def require_calibration(name: str | None, given: bool) -> None:
    """Refuse a policy that solves for its weights where there is no text to measure on.

    Raises:
        UsageError: `calibration-needed`, or `usage` for an unknown name.
    """
    if name is not None and policy_by_name(name).solves and not given:
        raise calibration_needed(name)


def policy_by_name(name: str) -> MergePolicy:
    """The policy that --on-merge names.

    Raises:
        UsageError: `usage`.
    """
    found = POLICIES.get(name)
    if found is None:
        raise UsageError(
            "usage", f"no merge policy {name!r}", expected=f"one of {', '.join(POLICIES)}"
        )
    return found
