"""LoRA on fused experts: one 3-D parameter for all, and one pair of factors.

Meaning: peft/tuners/lora/layer.py, `ParamWrapper` (PEFT 0.21, `target_parameters`). No
architecture that is exported has experts yet, so `lora_targets.py` refuses such adapters; the
layout of the factors, which is easily got wrong, is settled and tested here.

With E experts of rank r, expert e has the rows `[e r, (e + 1) r)` of A `[E r, in]`, and of B
`[out, E r]` the columns `e, e + E, e + 2 E, ...`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
    scales: Mapping[str, float],
) -> dict[str, tuple[LowRankDelta, ...]]:
    """Deltas `[out, in]` of each expert, by parameter.

    Args:
        opened: the adapter's folder.
        module: that holds the parameters, "model.layers.0.mlp.experts".
        parameters: the targeted ones, in the order in which the module registers them: PEFT wraps
            them in turn, so that all but the last have `base_layer` in their names, once for each
            that follows.
        scales: by parameter.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-shape`, `dtype-unsupported`.
    """
    deltas: dict[str, tuple[LowRankDelta, ...]] = {}
    for depth, parameter in zip(range(len(parameters) - 1, -1, -1), parameters, strict=True):
        wrapped = module + ".base_layer" * depth
        a = _tensor(opened, wrapped, "lora_A.weight")
        b = _tensor(opened, wrapped, "lora_B.weight")
        _check_shapes(opened, a, b, parameter)
        deltas[parameter.name] = tuple(
            _delta(opened, a, b, parameter, expert, scales[parameter.name])
            for expert in range(parameter.experts)
        )
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
    total = found[0][0] if found[0] else 0
    want = ((total, parameter.in_features), (parameter.out_features, total))
    if found != want or total % parameter.experts or not total:
        raise InputRefused(
            "adapter-shape",
            f"A {list(found[0])}, B {list(found[1])}",
            expected=f"A [{parameter.experts} r, {parameter.in_features}], "
            f"B [{parameter.out_features}, {parameter.experts} r]",
            file=opened.tensors.label,
            tensor=a,
        )


def _delta(
    opened: PeftFolder, a: str, b: str, parameter: ExpertParameter, expert: int, scale: float
) -> LowRankDelta:
    all_a, all_b = opened.tensors.float32(a), opened.tensors.float32(b)
    return LowRankDelta(
        (parameter.out_features, parameter.in_features),
        lambda: expert_factors(all_a(), all_b(), parameter.experts, expert)[0],
        lambda: expert_factors(all_a(), all_b(), parameter.experts, expert)[1],
        scale,
    )
