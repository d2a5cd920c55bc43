"""What became of the adapters: tensors used, linears changed, elements lost to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.adapters.base import Adapter
from exporter.adapters.s2ft_overlap import overlap
from exporter.model import FusedModel


@dataclass(frozen=True)
class Accounting:
    """The books of one merge. Modules are linears, the head and the embedding."""

    tensors_found: int  # in the adapters' files
    tensors_used: int
    linears: int  # of the model
    linears_adapted: int  # that a delta is for
    linears_changed: int  # where an element of the weight changes, or a branch stands beside it
    unchanged: tuple[str, ...]  # modules that a delta is for and that stay as they were
    replaced: int  # tensors replaced, as a whole or by single rows
    added_to: int  # biases added to
    elements_changed: int  # whose delta is not zero and was not dropped
    elements_vanished: int | None  # of these, as before after rounding to the stored type
    overlaps: Mapping[str, Mapping[str, Any]]  # module -> how several S2FT adapters meet there


def account(
    model: FusedModel,
    adapters: Sequence[tuple[Adapter, float]],
    figures: Mapping[str, Mapping[str, Any]],
) -> Accounting:
    """The books, from the figures of `measure`."""
    linears = {linear.module for linear in model.spec.linears()}
    adapted = {module for adapter, _ in adapters for module in adapter.deltas}
    changed = {m for m, f in figures.items() if f["changed"]} | set(model.branches)
    vanished = [f["vanished"] for f in figures.values()]
    return Accounting(
        tensors_found=sum(a.tensors_found for a, _ in adapters),
        tensors_used=sum(a.tensors_used for a, _ in adapters),
        linears=len(linears),
        linears_adapted=len(adapted & linears),
        linears_changed=len(changed & linears),
        unchanged=tuple(sorted(adapted - changed)),
        replaced=len({*model.record["replaced"], *model.record["rows_replaced"]}),
        added_to=len(model.record["added_to"]),
        elements_changed=sum(f["changed"] for f in figures.values()),
        elements_vanished=None if None in vanished else sum(vanished),
        overlaps={m: asdict(o) for m, o in overlap([a for a, _ in adapters]).items()},
    )
