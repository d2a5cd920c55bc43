"""LoRA of a model with experts: from transformers' parameters to the linears of the checkpoint.

PEFT adapts the model as transformers 5 holds it (`ModelSpec.fused_experts`, `.routers`); masks,
patterns and files are of the single linears. An adapter that was trained with transformers 4 names
these themselves and needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from exporter.adapters.fused_experts import ExpertDeltas, ExpertParameter, read_expert_deltas
from exporter.adapters.lora_config import LoraConfig
from exporter.adapters.lora_targets import names_parameter
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.names import PeftName
from exporter.adapters.peft_files import PeftFolder
from exporter.arch.model_spec import FusedExperts, ModelSpec
from exporter.errors import InputRefused

_BASE_LAYER = ".base_layer"


@dataclass(frozen=True)
class ExpertLora:
    """What an adapter adds to experts."""

    deltas: Mapping[str, LowRankDelta] = field(default_factory=dict)  # by linear
    tensors: int = 0  # of the file, used
    moves: bool = False  # something is other than zero
    ranks: frozenset[int] = frozenset()
    scales: frozenset[float] = frozenset()


def take_experts(opened: PeftFolder, spec: ModelSpec) -> tuple[PeftFolder, tuple[PeftName, ...]]:
    """The folder without the factors of fused experts, routers by their stored names; and these.

    The names that come apart are still among none of the folder's.
    """
    modules, routers = {f.module for f in spec.fused_experts()}, spec.routers()
    apart = tuple(n for n in opened.names if _bare(n.module) in modules)
    taken = {n.tensor for n in apart}
    rest = (n for n in opened.names if n.tensor not in taken)
    renamed = tuple(replace(n, module=routers.get(n.module, n.module)) for n in rest)
    return replace(opened, names=renamed), apart


def _bare(module: str) -> str:
    while module.endswith(_BASE_LAYER):
        module = module.removesuffix(_BASE_LAYER)
    return module


def read_experts(
    names: Sequence[PeftName], opened: PeftFolder, config: LoraConfig, spec: ModelSpec
) -> ExpertLora:
    """Deltas of the experts' linears, of the names that `take_experts` took apart.

    Raises:
        InputRefused: `adapter-option`, `adapter-tensor-missing`, `adapter-tensor-unused`,
            `adapter-shape`, `dtype-unsupported`, `value-not-finite`, `value-overflow`.
    """
    wanted = [f for f in spec.fused_experts() if names_parameter(config, f.key)]
    used = replace(opened, names=tuple(names))
    _check_kind(wanted, config, opened)
    deltas: dict[str, LowRankDelta] = {}
    ranks, scales, moves = set[int](), set[float](), False
    for module, group in groupby(wanted, key=lambda f: f.module):
        _check_names(module, group := list(group), used)
        parameters = [_parameter(f, config, opened.config_file) for f in group]
        read = read_expert_deltas(used, module, parameters)
        ranks |= {p.rank for p in parameters}
        scales |= {p.scale for p in parameters}
        for fused in group:
            moves = moves or read[fused.name].moves
            deltas |= _by_linear(fused, read[fused.name])
    _all_used({f.module for f in wanted}, used)
    return ExpertLora(deltas, len(names), moves, frozenset(ranks), frozenset(scales))


def _parameter(fused: FusedExperts, config: LoraConfig, file: str) -> ExpertParameter:
    return ExpertParameter(
        fused.name,
        len(fused.linears),
        fused.out_features,
        fused.in_features,
        rank=config.rank(fused.key, file),
        scale=config.scale(fused.key, file),
    )


def _by_linear(fused: FusedExperts, found: ExpertDeltas) -> dict[str, LowRankDelta]:
    deltas: dict[str, LowRankDelta] = {}
    for linears, delta in zip(fused.linears, found.each, strict=True):
        start = 0
        for linear in linears:
            end = start + linear.out_features
            deltas[linear.module] = _rows(delta, start, end)
            start = end
    return deltas


def _rows(delta: LowRankDelta, start: int, end: int) -> LowRankDelta:
    whole = delta.b
    return replace(delta, shape=(end - start, delta.shape[1]), b=lambda: whole()[start:end])


def _check_kind(wanted: Sequence[FusedExperts], config: LoraConfig, opened: PeftFolder) -> None:
    if wanted and config.sparse_adapter:
        raise InputRefused(
            "adapter-option",
            "sparse_adapter with target_parameters of experts: SQFT masks linears",
            expected="one of the two",
            file=opened.config_file,
        )


def _check_names(module: str, group: Sequence[FusedExperts], used: PeftFolder) -> None:
    """No factors deeper than the parameters are wrapped, and no other parts of a LoRA."""
    known = {module + _BASE_LAYER * depth for depth in range(len(group))}
    parts = ("lora_A.weight", "lora_B.weight")
    for name in used.names:
        if _bare(name.module) == module and (name.module not in known or name.part not in parts):
            raise _unused(name, used.tensors.label)


def _all_used(modules: set[str], used: PeftFolder) -> None:
    for name in used.names:
        if _bare(name.module) not in modules:
            raise _unused(name, used.tensors.label)


def _unused(name: PeftName, file: str) -> InputRefused:
    return InputRefused(
        "adapter-tensor-unused",
        "target_parameters names no parameter of experts that it could belong to",
        expected="lora_A.weight and lora_B.weight of each targeted parameter",
        file=file,
        tensor=name.tensor,
    )
