"""Pairs of factors A and B in a PEFT file: grouped, complete, finite and of the right shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.names import PeftName
from exporter.adapters.tensors import TensorFile, largest_magnitude
from exporter.arch.model_spec import ModelSpec
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

_FLOAT32_MAX = 3.4e38
Shapes = Mapping[str, tuple[int, int]]

_A, _B, _BIAS = "lora_A.weight", "lora_B.weight", "lora_B.bias"
_EMBEDDING_A, _EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
# The second is how the tensor is called inside PEFT, the first how PEFT saves it.
_MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.weight")
PLAIN = frozenset({_A, _B, _BIAS})
ALL = PLAIN | {_EMBEDDING_A, _EMBEDDING_B, *_MAGNITUDES}


@dataclass(frozen=True)
class Factors:
    """Tensor names of one module's LoRA, by their part in `delta = scale * B A`.

    `turned` tells that both are stored transposed, A as `[in, r]` and B as `[r, out]`: PEFT's
    embedding factors, whose names are swapped too, and parameters of a Conv1D.
    """

    module: str
    a: str
    b: str
    bias: str | None = None  # of B ("lora_bias")
    magnitude: str | None = None  # of DoRA
    turned: bool = False
    embedding: bool = False  # of a lookup: lora_embedding_A and _B

    @property
    def tensors(self) -> int:
        """How many tensors of the file it uses."""
        return 2 + (self.bias is not None) + (self.magnitude is not None)


def embedding_module(spec: ModelSpec) -> str:
    """Module name of the embedding, "model.embed_tokens"."""
    return spec.embedding.removesuffix(".weight")


def head_module(spec: ModelSpec) -> str:
    """Module name of the head, "lm_head"."""
    return spec.head.removesuffix(".weight")


def adaptable(spec: ModelSpec) -> Shapes:
    """Modules that can carry a low-rank delta, and their `[out, in]`: all linears, and the head."""
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    shapes[head_module(spec)] = (spec.vocab, spec.hidden)
    return shapes


def group_factors(
    names: Iterable[PeftName], file: str, known: frozenset[str] = PLAIN
) -> dict[str, Factors]:
    """Factors by module, in the order of names; `known` are the parts that the family has.

    Raises:
        InputRefused: `adapter-tensor-missing` for a lone A or B, `adapter-option` for parts of
            another kind of LoRA, `adapter-tensor-unused` for unknown parts.
    """
    parts: dict[str, dict[str, str]] = {}
    for name in names:
        if name.part.startswith("lora_"):
            _known_part(name, file, known)
            parts.setdefault(name.module, {})[name.part] = name.tensor
    return {module: _pair(module, found, file) for module, found in parts.items()}


def _pair(module: str, found: Mapping[str, str], file: str) -> Factors:
    embedding = _EMBEDDING_A in found or _EMBEDDING_B in found
    first, second = (_EMBEDDING_A, _EMBEDDING_B) if embedding else (_A, _B)
    for want in (first, second):
        if want not in found:
            raise InputRefused(
                "adapter-tensor-missing",
                f"{', '.join(sorted(found))} without {want}",
                expected=f"{first} and {second}",
                file=file,
                tensor=module,
            )
    magnitudes = [found[m] for m in _MAGNITUDES if m in found]
    if embedding and (_A in found or _B in found or _BIAS in found) or len(magnitudes) > 1:
        raise InputRefused(
            "adapter-invalid",
            f"{', '.join(sorted(found))} on one module",
            expected=f"{first} and {second}, at most one magnitude vector",
            file=file,
            tensor=module,
        )
    magnitude = magnitudes[0] if magnitudes else None
    if embedding:
        # delta = (B' A')^T of PEFT's own A' [r, vocab] and B' [hidden, r].
        a, b = found[_EMBEDDING_B], found[_EMBEDDING_A]
        return Factors(module, a, b, None, magnitude, turned=True, embedding=True)
    return Factors(module, found[_A], found[_B], found.get(_BIAS), magnitude)


def _known_part(name: PeftName, file: str, known: frozenset[str]) -> None:
    if name.part in known:
        return
    if name.part in ALL:
        raise InputRefused(
            "adapter-option",
            f"{name.part}: a kind of LoRA that this adapter cannot be",
            expected=", ".join(sorted(known)),
            file=file,
            tensor=name.tensor,
        )
    raise InputRefused(
        "adapter-tensor-unused",
        "no part of a LoRA has this name",
        expected=", ".join(sorted(known)),
        file=file,
        tensor=name.tensor,
    )


def check_modules(
    factors: Iterable[str], spec: ModelSpec, file: str, shapes: Shapes | None = None
) -> Shapes:
    """`[out, in]` of every adaptable module of the base, once all of `factors` are known there.

    Raises:
        InputRefused: `adapter-module`.
    """
    shapes = adaptable(spec) if shapes is None else shapes
    modules = list(factors)
    strange = [m for m in modules if m not in shapes]
    if strange:
        raise InputRefused(
            "adapter-module",
            f"the {spec.family} base of {spec.layers} layers has no linear of this name "
            f"({len(strange)} of {len(modules)} modules)",
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
    _not_swapped(factors, shape, rank, tensors)
    turned = factors.turned
    _check_shape(tensors, factors.a, (width, rank) if turned else (rank, width), "A")
    _check_shape(tensors, factors.b, (rank, out) if turned else (out, rank), "B")
    a, b = (_reader(tensors, name, turned) for name in (factors.a, factors.b))
    delta = LowRankDelta(shape, a, b, scale)
    top = largest_product(tensors, factors.a, factors.b, rank, scale, factors.module)
    return delta, top > 0.0


def largest_product(
    tensors: TensorFile, a: str, b: str, rank: int, scale: float, module: str
) -> float:
    """A bound of `scale * B A`; 0.0 only where that is zero.

    Raises:
        InputRefused: `value-not-finite`, `value-overflow`.
    """
    top = rank * abs(scale) * largest_magnitude(tensors, a) * largest_magnitude(tensors, b)
    if top > _FLOAT32_MAX:
        raise InputRefused(
            "value-overflow",
            f"scale * B A may reach {top:.3g}",
            expected="values that fit float32",
            file=tensors.label,
            tensor=module,
            hint="Check alpha and the factors: training has diverged.",
        )
    return top


def _not_swapped(factors: Factors, shape: tuple[int, int], rank: int, tensors: TensorFile) -> None:
    found = tensors.entries[factors.a].shape, tensors.entries[factors.b].shape
    swapped, right = ((shape[0], rank), (rank, shape[1])), ((rank, shape[1]), (shape[0], rank))
    if found == swapped != right and not factors.turned:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found[0])}: A and B are swapped, as LoRS's code names them",
            expected=f"{list(right[0])} for A, by the base and the config's rank",
            file=tensors.label,
            tensor=factors.a,
            hint="If it was trained under the base's zeros, set sparse_adapter to true in "
            "adapter_config.json; else swap the names.",
        )


def _reader(tensors: TensorFile, name: str, turned: bool) -> Callable[[], F32]:
    whole = tensors.float32(name)

    def transposed() -> F32:
        return whole().T

    return transposed if turned else whole


def _check_shape(tensors: TensorFile, name: str, want: tuple[int, ...], part: str) -> None:
    found = tensors.entries[name].shape
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found)}",
            expected=f"{list(want)} for {part}, by the base and the config's rank",
            file=tensors.label,
            tensor=name,
        )
