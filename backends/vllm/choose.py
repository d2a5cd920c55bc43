"""How each linear is stored: kind, N:M and type of values, by the bytes that each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from backends.hf.rounded import dtypes
from backends.packed.pack import index
from backends.packed.spec import PackedLinear, ValueType
from backends.vllm.counts import from_headers, linears, mask, pattern, tightest
from exporter.arch.model_spec import Linear
from exporter.contract import QuantiseRequest
from exporter.model import FusedModel
from exporter.sparsity.pattern import LinearPattern
from exporter.store.dtypes import DType

FloatValues = Literal["bf16", "fp16", "fp32"]
_OF_DTYPE = {DType.BF16: ValueType.BF16, DType.F16: ValueType.FP16, DType.F32: ValueType.FP32}


@dataclass(frozen=True)
class Wish:
    """What a target was asked for.

    Args:
        ragged: whether a linear may be stored ragged; else it is N:M or dense.
        values: float type of the values; None for that of the checkpoint, linear by linear.
        quantised: how the model was quantised, or will be (`--plan`); None: not at all.
    """

    ragged: bool
    values: FloatValues | None = None
    quantised: QuantiseRequest | None = None


@dataclass(frozen=True)
class Chosen:
    """One linear as it will be stored; `slots` are its stored values, if it is ragged."""

    linear: Linear
    spec: PackedLinear
    slots: int | None

    @property
    def tensors(self) -> Mapping[str, tuple[DType, tuple[int, ...]]]:
        """Type and shape of every part."""
        return self.spec.tensors(self.slots)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(prod(shape) * dtype.nbytes for dtype, shape in self.tensors.values())


def choose(model: FusedModel, wish: Wish) -> dict[str, Chosen]:
    """Weight name -> how it is stored, for every linear, in the model's order.

    A linear that the check calls dense is stored dense. Of the kinds that can hold another, that
    of the fewest bytes is taken: N:M before ragged before dense where they are equal.
    """
    found = linears(model)
    stored = dtypes(model, None)
    return {
        name: _choose(model, found[name], _value_type(model, name, stored[name], wish), wish)
        for name in model.tensors
        if name in found
    }


_Typed = tuple[ValueType, int]  # and the group of its scales


def _value_type(model: FusedModel, name: str, stored: DType, wish: Wish) -> _Typed:
    quantised = model.tensors[name].quantised
    if quantised is not None:
        return ValueType(quantised.kind), quantised.group
    if wish.quantised is not None and from_headers(model):
        return ValueType(wish.quantised.kind), wish.quantised.group
    return _OF_DTYPE[stored] if wish.values is None else ValueType(wish.values), 0


def _choose(model: FusedModel, linear: Linear, typed: _Typed, wish: Wish) -> Chosen:
    counts = pattern(model, linear)
    if counts.pattern.kind == "dense":
        return _dense(linear, typed)
    makers: list[Callable[[], Chosen | None]] = [lambda: _nm(linear, counts, typed)]
    if wish.ragged:
        makers.append(lambda: _ragged(model, linear, counts, typed))
    makers.append(lambda: _dense(linear, typed))
    return min(_present(makers), key=lambda chosen: chosen.nbytes)


def _present(makers: list[Callable[[], Chosen | None]]) -> Iterator[Chosen]:
    for make in makers:
        chosen = make()
        if chosen is not None:
            yield chosen


def _dense(linear: Linear, typed: _Typed) -> Chosen:
    shape = (linear.out_features, linear.in_features)
    return Chosen(linear, PackedLinear("dense", typed[0], shape, prod(shape), group=typed[1]), None)


def _nm(linear: Linear, counts: LinearPattern, typed: _Typed) -> Chosen | None:
    fits = tightest(counts)
    if fits is None:
        return None
    shape = (linear.out_features, linear.in_features)
    spec = PackedLinear("nm", typed[0], shape, counts.kept, *fits, group=typed[1])
    return Chosen(linear, spec, None)


def _ragged(model: FusedModel, linear: Linear, counts: LinearPattern, typed: _Typed) -> Chosen:
    shape = (linear.out_features, linear.in_features)
    spec = PackedLinear("ragged", typed[0], shape, counts.kept, group=typed[1])
    if typed[0] is not ValueType.INT4:
        return Chosen(linear, spec, counts.kept)
    # Each tile of int4 ends at a byte, which the number of kept weights does not tell.
    return Chosen(linear, spec, int(index(spec, mask(model, linear)).starts[-1]))
