"""Pairs of factors A and B in a PEFT file: grouped, complete, finite and of the right shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.names import PeftName
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused

_FLOAT32_MAX = 3.4e38
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Factors:
    """Tensor names of one module's LoRA."""

    module: str
    a: str
    b: str
    bias: str | None  # of B ("lora_bias")

    @property
    def tensors(self) -> int:
        """How many tensors of the file it uses."""
        return 2 + (self.bias is not None)


def head_module(spec: ModelSpec) -> str:
    """Module name of the head, "lm_head"."""
    return spec.head.removesuffix(".weight")


def adaptable(spec: ModelSpec) -> Shapes:
    """Modules that can carry a low-rank delta, and their `[out, in]`: all linears, and the head."""
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    shapes[head_module(spec)] = (spec.vocab, spec.hidden)
    return shapes


def group_factors(names: Iterable[PeftName], file: str) -> dict[str, Factors]:
    """Factors by module, in the order of names.

    Raises:
        InputRefused: `adapter-tensor-missing` for a lone A or B, `adapter-option` for parts of
            another kind of LoRA, `adapter-tensor-unused` for unknown parts.
    """
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        if name.part.startswith("lora_"):
            _known_part(name, file)
            parts.setdefault(name.module, {})[name.part] = name.tensor
    return {module: _pair(module, found, file) for module, found in parts.items()}


def _pair(module: str, found: Mapping[str, str], file: str) -> Factors:
    for want in ("lora_A.weight", "lora_B.weight"):
        if want not in found:
            raise InputRefused(
                "adapter-tensor-missing",
                f"{', '.join(sorted(found))} without {want}",
                expected="lora_A.weight and lora_B.weight",
                file=file,
                tensor=module,
            )
    return Factors(module, found["lora_A.weight"], found["lora_B.weight"], found.get("lora_B.bias"))


def _known_part(name: PeftName, file: str) -> None:
    if name.part in ("lora_A.weight", "lora_B.weight", "lora_B.bias"):
        return
    if name.part.startswith("lora_embedding_"):
        raise InputRefused(
            "adapter-option",
            "a LoRA on the embedding is not supported",
            expected="LoRA on linear layers",
            file=file,
            tensor=name.tensor,
            hint="Merge it into the base with PEFT first, then prune and export that base.",
        )
    if name.part.startswith("lora_magnitude_vector"):
        raise InputRefused(
            "adapter-option",
            "a magnitude vector: this is DoRA, whatever the config says",
            expected="lora_A and lora_B alone",
            file=file,
            tensor=name.tensor,
        )
    raise InputRefused(
        "adapter-tensor-unused",
        "no part of a LoRA has this name",
        expected="lora_A.weight, lora_B.weight or lora_B.bias",
        file=file,
        tensor=name.tensor,
    )


def check_modules(factors: Mapping[str, Factors], spec: ModelSpec, file: str) -> Shapes:
    """`[out, in]` of every adaptable module of the base, once all of `factors` are known there.

    Raises:
        InputRefused: `adapter-module`.
    """
    shapes = adaptable(spec)
    strange = [m for m in factors if m not in shapes]
    if strange:
        raise InputRefused(
            "adapter-module",
            f"the {spec.family} base of {spec.layers} layers has no linear of this name "
            f"({len(strange)} of {len(factors)} modules)",
            expected="modules of the base",
            file=file,
            tensor=strange[0],
        )
    return shapes


def build_delta(
    factors: Factors, shape: tuple[int, int], rank: int, scale: float, tensors: TensorFile
) -> tuple[LowRankDelta, bool]:
    """The delta of one module, and whether it is other than zero.

    Raises:
        InputRefused: `adapter-shape`, `value-not-finite`, `value-overflow`, `dtype-unsupported`.
    """
    out, width = shape
    _check_shape(tensors, factors.a, (rank, width), "[rank, in]")
    _check_shape(tensors, factors.b, (out, rank), "[out, rank]")
    delta = LowRankDelta(shape, tensors.float32(factors.a), tensors.float32(factors.b), scale)
    top = (
        rank
        * abs(scale)
        * largest_magnitude(tensors, factors.a)
        * largest_magnitude(tensors, factors.b)
    )
    if top > _FLOAT32_MAX:
        raise InputRefused(
            "value-overflow",
            f"scale * B A may reach {top:.3g}",
            expected="values that fit float32",
            file=tensors.label,
            tensor=factors.module,
            hint="Check alpha and the factors: training has diverged.",
        )
    return delta, top > 0.0


def _check_shape(tensors: TensorFile, name: str, want: tuple[int, ...], axes: str) -> None:
    found = tensors.entries[name].shape
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found)}",
            expected=f"{list(want)} {axes}, by the base and the config's rank",
            file=tensors.label,
            tensor=name,
        )
