"""Which modules a LoRA's config calls for: `target_modules`, `target_parameters`, and tied ends.

Meaning: peft/tuners/tuners_utils.py (`inject_adapter`, `_inject_parameters`,
`_check_tied_modules`) and peft/tuners/lora/model.py (`_add_targets_to_tie`) of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from exporter.adapters.factors import Factors, Shapes, adaptable, embedding_module, head_module
from exporter.adapters.lora_config import LoraConfig
from exporter.adapters.peft_config import Files, check_targets
from exporter.adapters.peft_files import PeftFolder
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused


@dataclass(frozen=True)
class Targeted:
    """Factors by module as the merge takes them, and what the tie of the base makes of them."""

    factors: Mapping[str, Factors]
    unties: bool  # as in `Adapter`
    twins: int = 0  # tensors of a tied head that repeat the embedding's


def lora_shapes(spec: ModelSpec) -> Shapes:
    """`[out, in]` of every module that a LoRA can adapt: linears, head, embedding, routers."""
    tensors = spec.tensors()
    routers = {m: tensors[f"{m}.weight"] for m in spec.routers().values()}
    ends = {embedding_module(spec): (spec.vocab, spec.hidden)}
    return {**adaptable(spec), **ends, **{m: (s[0], s[1]) for m, s in routers.items()}}


def parameters_held(shapes: Shapes, spec: ModelSpec) -> Mapping[str, str]:
    """Module -> name of its weight in memory, where that is a parameter of its own.

    The linears of experts are none: see `fused_experts.py`.
    """
    inside = {li.module for f in spec.fused_experts() for one in f.linears for li in one}
    routers = {stored: memory for memory, stored in spec.routers().items()}
    return {m: f"{routers.get(m, m)}.weight" for m in shapes if m not in inside}


def by_parameter(config: LoraConfig, held: Mapping[str, str]) -> frozenset[str]:
    """Modules whose weight `target_parameters` names; PEFT compares ends of names at dots.

    `held` is of `parameters_held`.
    """
    return frozenset(m for m, weight in held.items() if names_parameter(config, weight))


def names_parameter(config: LoraConfig, parameter: str) -> bool:
    """Whether `target_parameters` names this one."""
    return any(f".{parameter}".endswith(f".{name}") for name in config.target_parameters)


def settle(
    factors: Mapping[str, Factors],
    config: LoraConfig,
    shapes: Shapes,
    spec: ModelSpec,
    opened: PeftFolder,
) -> Targeted:
    """Compare the file's modules with the config's, and decide about embedding and head.

    Raises:
        InputRefused: `adapter-option`, `adapter-tensor-unused`, `adapter-tensor-missing`,
            `tie-conflict`.
    """
    held = parameters_held(shapes, spec)
    fused = [f.key for f in spec.fused_experts()]
    _parameters_are_there(config, [*held.values(), *fused], opened.config_file)
    parameters = by_parameter(config, held)
    _embedding_kind(factors, parameters, spec, opened)
    shared = _shared(factors, config, spec, opened)
    # With DoRA the norms of the embedding are of columns and those of the head of rows, so that
    # equal factors do not make equal ends.
    repeats = shared and not config.use_dora
    own = _one_end(factors, config, spec, opened) if repeats else factors
    head = head_module(spec)
    further = parameters | ({head} if shared else set[str]())
    considered = {m: s for m, s in shapes.items() if not (repeats and m == head)}
    files = Files(opened.config_file, opened.tensors.label)
    check_targets({m: f.a for m, f in own.items()}, config, considered, spec, files, further)
    conv1d = {li.module for li in spec.linears() if li.transposed} & parameters
    # PEFT takes a parameter's first axis for its outputs: the other way round for Conv1D.
    turned = {m: _turned(f) if m in conv1d else f for m, f in own.items()}
    ends = {embedding_module(spec), head} & own.keys()
    twins = factors[head].tensors if repeats else 0
    return Targeted(turned, unties=spec.tied and bool(ends) and not repeats, twins=twins)


def _turned(factors: Factors) -> Factors:
    return replace(factors, a=factors.b, b=factors.a, turned=True)


def _parameters_are_there(config: LoraConfig, held: Iterable[str], file: str) -> None:
    for name in config.target_parameters:
        if not any(f".{parameter}".endswith(f".{name}") for parameter in held):
            raise InputRefused(
                "adapter-option",
                f"target_parameters names {name!r:.80}, which is no weight of a linear here, "
                "nor a parameter of experts",
                expected="parameters that transformers holds for this architecture",
                file=file,
            )


def _embedding_kind(
    factors: Mapping[str, Factors], parameters: frozenset[str], spec: ModelSpec, opened: PeftFolder
) -> None:
    """The embedding has lookup factors, and nothing else does (but where it is a parameter)."""
    lookup = {embedding_module(spec)} - parameters
    for module, found in factors.items():
        if found.embedding != (module in lookup):
            raise InputRefused(
                "adapter-invalid",
                f"factors of {'an embedding' if found.embedding else 'a linear'} on {module}",
                expected="lora_embedding_A and _B on the embedding, lora_A and lora_B elsewhere",
                file=opened.tensors.label,
                tensor=found.a,
            )


def _shared(
    factors: Mapping[str, Factors], config: LoraConfig, spec: ModelSpec, opened: PeftFolder
) -> bool:
    """Whether PEFT trained one pair of factors for both ends (`ensure_weight_tying`)."""
    pair = factors.get(embedding_module(spec))
    if not (spec.tied and config.ensure_weight_tying and pair is not None and pair.embedding):
        return False
    if head_module(spec) not in factors:
        raise InputRefused(
            "adapter-tensor-missing",
            "ensure_weight_tying is set, and the head's factors are not there",
            expected="the embedding's factors on the tied head too, as PEFT saves them",
            file=opened.tensors.label,
            tensor=head_module(spec),
        )
    return True


def _one_end(
    factors: Mapping[str, Factors], config: LoraConfig, spec: ModelSpec, opened: PeftFolder
) -> Mapping[str, Factors]:
    """The factors without the head's, which repeat the embedding's."""
    embedding, head = embedding_module(spec), head_module(spec)
    tensors, own, twin = opened.tensors, factors[embedding], factors[head]
    same_scale = config.scale(embedding, opened.config_file) == config.scale(
        head, opened.config_file
    )
    pairs = ((own.a, twin.a), (own.b, twin.b))
    if not same_scale or not all(
        np.array_equal(tensors.float32(x)().T, tensors.float32(y)()) for x, y in pairs
    ):
        raise InputRefused(
            "tie-conflict",
            "the factors of embedding and head differ, and ensure_weight_tying says that they "
            "are one",
            expected="equal factors and scales",
            file=tensors.label,
            tensor=head,
            hint="Save the adapter again from the model that was trained.",
        )
    return {m: f for m, f in factors.items() if m != head}
