"""What one decode step reads and multiplies, by the packed layout's own byte formulas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from backends.packed.spec import PackedLinear
from backends.packed.values import ValueType
from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import load_spec
from exporter.sparsity.nm import capacity
from exporter.store.dtypes import DType
from exporter.store.listing import read_config

DENSE = "dense"
PATTERNS = (DENSE, "50%", "60%", "70%", "80%", "90%", "2:4", "2:8")
Shape = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One decode step of a model at batch 1.

    Attributes:
        linears: prunable `[out, in]` -> how many of them a token passes; of experts, those that
            its router takes.
        dense: bytes of what stays dense: head, router, one row of the embedding, norms.
        dense_values: multiplied values among them.
        kv: bytes of keys and values a position of context.
    """

    linears: Mapping[Shape, float]
    dense: int
    dense_values: int
    kv: int

    @property
    def weights(self) -> float:
        """Values of all prunable linears that a token passes."""
        return sum(prod(shape) * count for shape, count in self.linears.items())

    @property
    def largest(self) -> Shape:
        """The shape that most of the values are in."""
        return max(self.linears, key=lambda shape: prod(shape) * self.linears[shape])


def read_step(model: Path) -> Step:
    """The step of a Hugging Face folder, by its config.json alone: weights need not be there.

    Raises:
        InputRefused: a config that cannot be read, or of no known architecture.
    """
    return step_of(load_spec(read_config(model)))


def step_of(spec: ModelSpec) -> Step:
    """What is not a linear is read in bfloat16, as the packed target leaves it."""
    share = _expert_share(spec)
    inside = {x.module for f in spec.fused_experts() for each in f.linears for x in each}
    linears: Counter[Shape] = Counter()
    for linear in spec.linears():
        part: Any = share if linear.module in inside else 1
        linears[linear.out_features, linear.in_features] += part
    matrices = (spec.vocab + sum(_experts(spec) for _ in spec.routers())) * spec.hidden
    pruned = {linear.weight for linear in spec.linears()}
    vectors = sum(prod(s) for n, s in spec.tensors().items() if len(s) == 1 and n not in pruned)
    width = DType.BF16.nbytes
    return Step(
        dict(linears),
        dense=(matrices + vectors + spec.hidden) * width,
        dense_values=matrices,
        kv=2 * spec.layers * spec.kv_heads * spec.head_dim * width,
    )


def _experts(spec: ModelSpec) -> int:
    return max((len(fused.linears) for fused in spec.fused_experts()), default=0)


def _expert_share(spec: ModelSpec) -> float:
    """Share of a layer's experts that a token passes; all where the config does not say."""
    taken = spec.config.get("num_experts_per_tok")
    experts = _experts(spec)
    return min(1.0, taken / experts) if experts and isinstance(taken, int) else 1.0


def packed_bytes(shape: Shape, pattern: str, values: ValueType) -> float:
    """Bytes that one product reads of a linear: every part of docs/formats/packed.md."""
    linear = _packed(shape, pattern, values)
    slots: int | None = None
    if linear.kind == "ragged" and values is ValueType.INT4:
        # Each tile is filled to an even number: by half a slot on average.
        slots = linear.nnz + linear.row_blocks * linear.column_tiles // 2
    return float(sum(dtype.nbytes * prod(s) for dtype, s in linear.tensors(slots).values()))


def kept_values(shape: Shape, pattern: str) -> int:
    """How many weights of a linear are left."""
    rows, columns = shape
    if pattern == DENSE:
        return rows * columns
    if pattern.endswith("%"):
        return round(rows * columns * (1 - float(pattern[:-1]) / 100))
    n, m = map(int, pattern.split(":"))
    return rows * capacity(columns, n, m)


def _packed(shape: Shape, pattern: str, values: ValueType) -> PackedLinear:
    kept = kept_values(shape, pattern)
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        return PackedLinear("nm", values, shape, kept, n, m)
    return PackedLinear("dense" if pattern == DENSE else "ragged", values, shape, kept)
