"""CheckedModel and adapters -> FusedModel: every tensor of the result, computed when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from exporter.adapters.base import Adapter
from exporter.contract import Progress
from exporter.errors import InputRefused, UsageError
from exporter.merge.base import MergePolicy, ModuleFacts
from exporter.merge.combined import CombinedDelta, combine
from exporter.merge.decide import Decision, decide
from exporter.merge.kept import KeptMasks
from exporter.merge.rows import Bases, MergedRows, Whole
from exporter.merge.workbench import Workbench
from exporter.model import CheckedModel, FusedModel, FusedTensor, LowRank, RowReader
from exporter.sparsity.mask import Mask

Weighted = tuple[Adapter, float]


def fuse(
    checked: CheckedModel,
    adapters: Sequence[Weighted],
    policy: str | None = None,
    progress: Progress | None = None,
    bench: Workbench | None = None,
) -> FusedModel:
    """Put `adapters`, each with its weight, into the model, in the order given.

    Reads no weight of the base but where a mask has to be compared, or where the policy solves for
    its weights: these are written to `bench` here. `measure` gives the figures of the merge.

    Args:
        checked: the base.
        adapters: adapters read for this base, and the factor of each.
        policy: name of a merge policy; None leaves only the exact merge.
        progress: called for each module while policies are chosen.
        bench: what calibration measured, for policies that use it; it must outlive the model.

    Raises:
        UsageError: `merge-policy-needed` (with `.shares`), `calibration-needed`, `usage`.
        InputRefused: `mask-mismatch`, `adapter-module`, `adapter-empty`.
    """
    masks = KeptMasks(checked)
    for adapter, _ in adapters:
        masks.check_trained_under(adapter)
    whole = _collect(adapters)
    bases = Bases(checked, masks, whole)
    deltas = combine(adapters, bases.weight)
    decisions = decide(deltas, masks, policy, progress)
    tied = checked.head_is_tied and not any(a.unties for a, _ in adapters)
    tensors = _tensors(deltas, decisions, bases, tied, partial(_merged, bases, bench, progress))
    _check_all_used(deltas, whole, tensors, adapters)
    kept_apart = {m: deltas[m] for m, d in decisions.items() if d.policy.keeps_branch}
    return FusedModel(
        checked=checked,
        tensors=tensors,
        branches=_Branches(kept_apart),
        tied=tied,
        record=_record(adapters, decisions, whole, policy, tied, checked),
        densified=frozenset(m for m, d in decisions.items() if _fills(d.policy)),
        moved_masks=_moved(tensors),
    )


def _fills(policy: MergePolicy) -> bool:
    return not (policy.keeps_mask or policy.moves_mask)


def _moved(tensors: Mapping[str, FusedTensor]) -> dict[str, Callable[[], Mask]]:
    return {
        t.rows.delta.module: t.rows.new_mask
        for t in tensors.values()
        if isinstance(t.rows, MergedRows) and t.rows.policy.moves_mask
    }


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


def _collect(adapters: Sequence[Weighted]) -> Whole:
    whole = Whole()
    for adapter, weight in adapters:
        for item in adapter.replacements:
            if item.mode in ("add", "scale"):
                whole.added.setdefault(item.tensor, []).append((item, weight))
                continue
            if weight != 1.0 or not whole.free(item):
                why = "two adapters replace it" if weight == 1.0 else f"weight {weight:g}"
                what = "rows of a tensor" if item.mode == "rows" else "a whole tensor"
                raise UsageError(
                    "usage",
                    f"adapter {adapter.name} replaces {what}: {why}",
                    expected="one adapter of weight 1 for each replaced tensor",
                    tensor=item.tensor,
                )
            if item.mode == "rows":
                whole.patches.setdefault(item.tensor, []).append(item)
            else:
                whole.replaced[item.tensor] = item
    return whole


def _tensors(
    deltas: Mapping[str, CombinedDelta],
    decisions: Mapping[str, Decision],
    bases: Bases,
    tied: bool,
    merged: Callable[[CombinedDelta, MergePolicy], MergedRows],
) -> dict[str, FusedTensor]:
    spec = bases.checked.spec
    linears = {li.weight: li for li in spec.linears()}
    shapes = dict(spec.tensors())
    if bases.checked.head_is_tied:
        shapes.pop(spec.head, None)
        if not tied:
            shapes[spec.head] = (spec.vocab, spec.hidden)  # starts as a copy of the embedding
    tensors: dict[str, FusedTensor] = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        decision = decisions.get(module) if name.endswith(".weight") else None
        merges = decision is not None and not decision.policy.keeps_branch
        rows: RowReader = bases.rows(name)
        if decision is not None and merges:
            rows = merged(deltas[module], decision.policy)
        changed = merges or bases.whole.touches(name)
        tensors[name] = FusedTensor(name, shape, rows, linears.get(name), changed)
    return tensors


def _merged(
    bases: Bases,
    bench: Workbench | None,
    progress: Progress | None,
    delta: CombinedDelta,
    policy: MergePolicy,
) -> MergedRows:
    masks, module = bases.masks, delta.module
    if policy.drops_outside and not masks.is_dense(module):
        delta = delta.under(lambda r0, r1: masks.rows(module, r0, r1))
    facts = ModuleFacts(module, masks.pattern(module), bench.gram(module) if bench else None)
    rows = MergedRows(bases.weight(module), delta, policy, masks, policy.bind(facts))
    if bench is None or not policy.solves:
        return rows
    return replace(rows, stored=bench.keep_rows(delta.shape, rows, progress))


def _check_all_used(
    deltas: Mapping[str, CombinedDelta],
    whole: Whole,
    tensors: Mapping[str, FusedTensor],
    adapters: Sequence[Weighted],
) -> None:
    """Nothing of an adapter is left behind, and something changes."""
    wanted = [f"{m}.weight" for m in deltas] + [*whole.replaced, *whole.patches, *whole.added]
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
    whole: Whole,
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
        "rows_replaced": {
            t: sum(len(r.indices) for r in found) for t, found in sorted(whole.patches.items())
        },
        "added_to": sorted(whole.added),
        "head": _head_note(tied, checked, whole),
    }


def _head_note(tied: bool, checked: CheckedModel, whole: Whole) -> str:
    if not checked.head_is_tied:
        return "apart"
    if not tied:
        return "untied: the adapter was trained with embedding and head apart"
    if checked.spec.embedding in whole.replaced:
        return "tied: the replaced embedding is the head too"
    return "tied"
