"""Which linears a target cannot store as it promises, with counts and the first offender."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from backends.vllm.counts import mask, obeys_2_4, pattern
from exporter.contract import Diagnostic
from exporter.model import FusedModel
from exporter.sparsity.mask import Mask
from exporter.sparsity.nm import first_violation, group_counts
from exporter.sparsity.pattern import LinearPattern

_NAMED = 3  # modules that are spelled out
_BLOCK_BYTES = 1 << 20  # of packed bits


@dataclass
class _Broken:
    """Groups of 4 that keep more than 2, over all linears."""

    groups: int = 0
    over: int = 0
    modules: int = 0
    first: tuple[str, int, int] | None = None  # module, row, group

    def add(self, module: str, bits: Mask) -> None:
        self.groups += bits.out_features * -(-bits.in_features // 4)
        over = over_two(bits)
        if not over:
            return
        self.over += over
        self.modules += 1
        at = first_violation(bits, 2, 4)
        if self.first is None and at is not None:
            self.first = (module, *at)


def over_two(bits: Mask) -> int:
    """Groups of 4 consecutive inputs that keep more than 2."""
    step = max(1, _BLOCK_BYTES // max(1, bits.bits.shape[1]))
    blocks = (bits.bits[r0 : r0 + step] for r0 in range(0, bits.out_features, step))
    return sum(int(np.count_nonzero(group_counts(block, 4) > 2)) for block in blocks)


def breaks_2_4(model: FusedModel) -> Iterator[Diagnostic]:
    """The refusal of a model that is not 2:4 in every linear: N:M below it are 2:4 too."""
    linears = model.spec.linears()
    if all(obeys_2_4(pattern(model, linear)) for linear in linears):
        return
    broken = _Broken()
    for linear in linears:
        broken.add(linear.module, mask(model, linear))
    if broken.first is None:
        return
    module, row, group = broken.first
    yield Diagnostic(
        "refusal",
        f"{broken.over:,} of {broken.groups:,} groups of 4 keep more than 2 weights, in "
        f"{broken.modules} of {len(linears)} linears; the first is {module}, row {row}, group "
        f"{group}; vllm-nm stores other N:M and dense linears, vllm-sparse stores any",
        module,
    )


def unstructured(model: FusedModel) -> Iterator[Diagnostic]:
    """The refusal of linears that are neither N:M nor dense."""
    found = [pattern(model, linear) for linear in model.spec.linears()]
    wrong = [each for each in found if not is_nm(each) and each.pattern.kind != "dense"]
    if not wrong:
        return
    names = ", ".join(f"{each.module} ({each.pattern})" for each in wrong[:_NAMED])
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    yield Diagnostic(
        "refusal",
        f"{len(wrong)} of {len(found)} linears are not N:M with M of 4, 8 or 16: {names}{more}; "
        "vllm-sparse stores them",
        wrong[0].module,
    )


def is_nm(found: LinearPattern) -> bool:
    """Whether a linear is N:M by its verdict, or holds 2:4 whatever else it is."""
    return found.pattern.kind == "n:m" or obeys_2_4(found)
