"""LoRA on fused experts: one 3-D parameter for all, and one pair of factors.

Meaning: peft/tuners/lora/layer.py, `ParamWrapper` (PEFT 0.21, `target_parameters`).

With E experts of rank r, expert e has the rows `[e r, (e + 1) r)` of A `[E r, in]`, and of B
`[out, E r]` the columns `e, e + E, e + 2 E, ...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.adapters.factors import largest_product
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.peft_files import PeftFolder
from exporter.errors import InputRefused
from exporter.store.dtypes import F32


@dataclass(frozen=True)
class ExpertParameter:
    """One 3-D parameter of an expert module.

    It lies as `[experts, out, in]`, or as `[experts, in, out]` where the module says that it
    `is_transposed`; the factors are the same for both.
    """

    name: str  # "gate_up_proj"
    experts: int
    out_features: int
    in_features: int
    rank: int
    scale: float


@dataclass(frozen=True)
class ExpertDeltas:
    """What the factors of one parameter add to each expert."""

    each: tuple[LowRankDelta, ...]  # [out, in], by expert
    moves: bool  # other than zero


def expert_factors(a: F32, b: F32, experts: int, expert: int) -> tuple[F32, F32]:
    """A `[r, in]` and B `[out, r]` of one expert, of the factors of all.

    Raises:
        ValueError: for shapes that no number of ranks explains.
    """
    rank, rest = divmod(a.shape[0], experts)
    if rest or b.shape[1] != a.shape[0] or not 0 <= expert < experts:
        raise ValueError(f"A {a.shape} and B {b.shape} of {experts} experts, expert {expert}")
    return a[expert * rank : (expert + 1) * rank], np.ascontiguousarray(b[:, expert::experts])


def read_expert_deltas(
    opened: PeftFolder,
    module: str,
    parameters: Sequence[ExpertParameter],
) -> dict[str, ExpertDeltas]:
    """Deltas of each expert, by parameter; each uses two tensors of the file.

    Args:
        opened: the adapter's folder.
        module: that holds the parameters, "model.layers.0.mlp.experts".
        parameters: the targeted ones, in the order in which the module registers them: PEFT wraps
            them in turn, so that all but the last have `base_layer` in their names, once for each
            that follows.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-shape`, `dtype-unsupported`,
            `value-not-finite`, `value-overflow`.
    """
    deltas: dict[str, ExpertDeltas] = {}
    for depth, parameter in zip(range(len(parameters) - 1, -1, -1), parameters, strict=True):
        wrapped = module + ".base_layer" * depth
        a = _tensor(opened, wrapped, "lora_A.weight")
        b = _tensor(opened, wrapped, "lora_B.weight")
        _check_shapes(opened, a, b, parameter)
        rank, scale = parameter.rank, parameter.scale
        top = largest_product(opened.tensors, a, b, rank, scale, f"{module}.{parameter.name}")
        each = (_delta(opened, a, b, parameter, e) for e in range(parameter.experts))
        deltas[parameter.name] = ExpertDeltas(tuple(each), top > 0.0)
    return deltas


def _tensor(opened: PeftFolder, module: str, part: str) -> str:
    for name in opened.names:
        if (name.module, name.part) == (module, part):
            return name.tensor
    raise InputRefused(
        "adapter-tensor-missing",
        f"no {part}",
        expected="lora_A.weight and lora_B.weight of each targeted parameter",
        file=opened.tensors.label,
        tensor=module,
    )


def _check_shapes(opened: PeftFolder, a: str, b: str, parameter: ExpertParameter) -> None:
    found = (opened.tensors.entries[a].shape, opened.tensors.entries[b].shape)
    total = parameter.experts * parameter.rank
    want = ((total, parameter.in_features), (parameter.out_features, total))
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"A {list(found[0])}, B {list(found[1])}",
            expected=f"A {list(want[0])}, B {list(want[1])}: {parameter.experts} experts of "
            f"rank {parameter.rank}",
            file=opened.tensors.label,
            tensor=a,
        )


def _delta(
    opened: PeftFolder, a: str, b: str, parameter: ExpertParameter, expert: int
) -> LowRankDelta:
    all_a, all_b = opened.tensors.float32(a), opened.tensors.float32(b)
    return LowRankDelta(
        (parameter.out_features, parameter.in_features),
        lambda: expert_factors(all_a(), all_b(), parameter.experts, expert)[0],
        lambda: expert_factors(all_a(), all_b(), parameter.experts, expert)[1],
        parameter.scale,
    )
