"""CheckedModel and adapters -> FusedModel: every tensor of the result, computed when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporter.adapters.base import Adapter, Replacement
from exporter.contract import Progress
from exporter.errors import InputRefused, UsageError
from exporter.merge.combined import CombinedDelta, combine
from exporter.merge.decide import Decision, decide
from exporter.merge.kept import KeptMasks
from exporter.merge.rows import BaseRows, MergedRows
from exporter.model import CheckedModel, FusedModel, FusedTensor, LowRank, RowReader

Weighted = tuple[Adapter, float]


@dataclass
class _Whole:
    """Replacements by tensor: at most one that replaces, any number that add."""

    replaced: dict[str, Replacement] = field(default_factory=dict)
    added: dict[str, list[tuple[Replacement, float]]] = field(default_factory=dict)

    def touches(self, tensor: str) -> bool:
        """Whether any adapter replaces the tensor or adds to it."""
        return tensor in self.replaced or tensor in self.added


def fuse(
    checked: CheckedModel,
    adapters: Sequence[Weighted],
    policy: str | None = None,
    progress: Progress | None = None,
) -> FusedModel:
    """Put `adapters`, each with its weight, into the model, in the order given.

    Reads no weight of the base but where a mask has to be compared. `measure` gives the figures
    of the merge.

    Args:
        checked: the base.
        adapters: adapters read for this base, and the factor of each.
        policy: name of a merge policy; None leaves only the exact merge.
        progress: called for each module while policies are chosen.

    Raises:
        UsageError: `merge-policy-needed` (with `.shares`), `usage`.
        InputRefused: `mask-mismatch`, `adapter-module`, `adapter-empty`.
    """
    masks = KeptMasks(checked)
    for adapter, _ in adapters:
        masks.check_trained_under(adapter)
    deltas = combine(adapters)
    decisions = decide(deltas, masks, policy, progress)
    whole = _collect(adapters)
    tied = checked.head_is_tied and not any(a.unties for a, _ in adapters)
    tensors = _tensors(checked, deltas, decisions, whole, masks, tied)
    _check_all_used(deltas, whole, tensors, adapters)
    kept_apart = {m: deltas[m] for m, d in decisions.items() if d.policy.keeps_branch}
    return FusedModel(
        checked=checked,
        tensors=tensors,
        branches=_Branches(kept_apart),
        tied=tied,
        record=_record(adapters, decisions, whole, policy, tied, checked),
        densified=frozenset(m for m, d in decisions.items() if not d.policy.keeps_mask),
    )


class _Branches(Mapping[str, LowRank]):
    """Branches by module; the factors are read when asked for and not held."""

    def __init__(self, deltas: Mapping[str, CombinedDelta]) -> None:
        self._deltas = deltas

    def __getitem__(self, module: str) -> LowRank:
        branch = self._deltas[module].low_rank()
        if branch is None:  # `decide` lets only deltas with factors through
            raise KeyError(module)
        return branch

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)


def _collect(adapters: Sequence[Weighted]) -> _Whole:
    whole = _Whole()
    for adapter, weight in adapters:
        for item in adapter.replacements:
            if item.mode == "add":
                whole.added.setdefault(item.tensor, []).append((item, weight))
                continue
            if weight != 1.0 or item.tensor in whole.replaced:
                why = "two adapters replace it" if weight == 1.0 else f"weight {weight:g}"
                raise UsageError(
                    "usage",
                    f"adapter {adapter.name} replaces a whole tensor: {why}",
                    expected="one adapter of weight 1 for each replaced tensor",
                    tensor=item.tensor,
                )
            whole.replaced[item.tensor] = item
    return whole


def _tensors(
    checked: CheckedModel,
    deltas: Mapping[str, CombinedDelta],
    decisions: Mapping[str, Decision],
    whole: _Whole,
    masks: KeptMasks,
    tied: bool,
) -> dict[str, FusedTensor]:
    spec = checked.spec
    linears = {li.weight: li for li in spec.linears()}
    shapes = dict(spec.tensors())
    if checked.head_is_tied:
        shapes.pop(spec.head, None)
        if not tied:
            shapes[spec.head] = (spec.vocab, spec.hidden)  # starts as a copy of the embedding
    tensors: dict[str, FusedTensor] = {}
    for name, shape in shapes.items():
        stored = spec.embedding if name == spec.head and checked.head_is_tied else name
        module = name.removesuffix(".weight")
        linear = linears.get(name)
        base = BaseRows(
            checked.checkpoint,
            stored,
            sparse=linear is not None and not masks.is_dense(module),
            replaced=whole.replaced.get(name),
            added=tuple(whole.added.get(name, ())),
        )
        decision = decisions.get(module) if name.endswith(".weight") else None
        merges = decision is not None and not decision.policy.keeps_branch
        rows: RowReader = base
        if decision is not None and merges:
            rows = MergedRows(base, deltas[module], decision.policy, masks)
        tensors[name] = FusedTensor(name, shape, rows, linear, merges or whole.touches(name))
    return tensors


def _check_all_used(
    deltas: Mapping[str, CombinedDelta],
    whole: _Whole,
    tensors: Mapping[str, FusedTensor],
    adapters: Sequence[Weighted],
) -> None:
    """Nothing of an adapter is left behind, and something changes."""
    wanted = [f"{m}.weight" for m in deltas] + [*whole.replaced, *whole.added]
    lost = sorted(set(wanted) - tensors.keys())
    if lost:
        raise InputRefused(
            "adapter-module",
            "the fused model has no such tensor",
            expected="a tensor of the base",
            tensor=lost[0],
        )
    if adapters and not wanted:
        raise InputRefused("adapter-empty", "the adapters name no tensor of the model")


def _record(
    adapters: Sequence[Weighted],
    decisions: Mapping[str, Decision],
    whole: _Whole,
    policy: str | None,
    tied: bool,
    checked: CheckedModel,
) -> dict[str, Any]:
    used = sorted({d.policy.name for d in decisions.values()})
    return {
        "policy": policy or ("exact" if adapters else "none"),
        "policies_used": used,
        "adapters": [
            {"family": a.family, "weight": w, "modules": len(a.deltas)} for a, w in adapters
        ],
        "modules": {m: {"policy": d.policy.name, "reason": d.reason} for m, d in decisions.items()},
        "replaced": {t: r.why for t, r in sorted(whole.replaced.items())},
        "added_to": sorted(whole.added),
        "head": _head_note(tied, checked, whole),
    }


def _head_note(tied: bool, checked: CheckedModel, whole: _Whole) -> str:
    if not checked.head_is_tied:
        return "apart"
    if not tied:
        return "untied: the adapter was trained with embedding and head apart"
    if checked.spec.embedding in whole.replaced:
        return "tied: the replaced embedding is the head too"
    return "tied"
