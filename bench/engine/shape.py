"""The random Llama that every engine runs: one shape, as a config and as a plan of the kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.packed.kernels.decoder import Layer, Plan
from backends.packed.kernels.linear import CpuLinear, Precision
from backends.packed.pack import pack
from backends.packed.spec import PackedLinear, Parts, ValueType
from bench.shapes import TINYLLAMA
from exporter.arch.decoder import ROLES, DecoderSpec
from exporter.arch.rope import half_tables
from exporter.arch.spec import load_spec
from exporter.store.dtypes import DType

VOCAB = 49152
"""A head as large as those of recent models of this size; it is the embedding."""
_MOST = {ValueType.INT8: 127, ValueType.INT4: 7}


def config(layers: int) -> dict[str, Any]:
    """config.json of TinyLlama's layers under a tied head."""
    shape = replace(TINYLLAMA, layers=layers, vocab=VOCAB)
    return {**shape.config(), "num_hidden_layers": layers, "tie_word_embeddings": True}


def spec(layers: int) -> DecoderSpec:
    """As the engine reads it."""
    found = load_spec(config(layers))
    if not isinstance(found, DecoderSpec):
        raise TypeError("TinyLlama is a decoder")
    return found


def random_plan(layers: int, values: str, sparsity: float, head: str, wide: Precision) -> Plan:
    """Random weights in the kernels' memory; each layer has a copy of its own.

    Args:
        sparsity: share of zeros of each linear, anywhere; 0 for linears stored dense.
        head: type of its values: "bf16", "int8".
    """
    made = spec(layers)
    rng = np.random.default_rng(0)
    kinds = {}
    for role in ROLES:
        linear = made.linear(0, role)
        shape = linear.out_features, linear.in_features
        kinds[role] = random_linear(shape, ValueType(values), sparsity, rng)
    table = (rng.standard_normal((VOCAB, made.hidden), np.float32) * 0.02).astype(DType.BF16.numpy)
    top = random_linear((VOCAB, made.hidden), ValueType(head), 0.0, rng)
    ones = np.ones(made.hidden, np.float32)
    last = _build(top, wide)
    return Plan(
        spec=made,
        layers=[_layer(kinds, ones, wide) for _ in range(layers)],
        embedding=table,
        final_norm=ones,
        head=(last, last, last),
        tables=half_tables(made, 512),
        slots=1,
    )


def random_linear(
    shape: tuple[int, int], values: ValueType, sparsity: float, rng: np.random.Generator
) -> tuple[PackedLinear, Parts]:
    """Normal weights of variance 1 / in; a share of them 0."""
    weight: NDArray[Any] = rng.standard_normal(shape, np.float32)
    kept = rng.random(shape, np.float32) >= sparsity if sparsity else np.ones(shape, np.bool_)
    small, group = 1 / math.sqrt(shape[1]), 128 if values is ValueType.INT4 else 0
    made = PackedLinear(
        "ragged" if sparsity else "dense", values, shape, int(kept.sum()), group=group
    )
    if values not in _MOST:
        return made, pack(made, (weight * small).astype(values.codes), kept)
    most = _MOST[values]
    codes = np.rint(weight * (most / 4)).clip(-most, most).astype(np.int8)
    scale = np.float32(small * 4 / most).astype(DType.BF16.numpy)
    scales = np.full((shape[0], made.scale_groups), scale)
    return made, pack(made, codes, kept, scales)


def _layer(
    kinds: Mapping[Any, tuple[PackedLinear, Parts]], ones: NDArray[Any], wide: Precision
) -> Layer:
    linears = {}
    for role, kind in kinds.items():
        one = _build(kind, wide)
        linears[role] = (one, one, one)
    return Layer(linears, {}, {"input_norm": ones, "post_norm": ones})


def _build(kind: tuple[PackedLinear, Parts], wide: Precision) -> CpuLinear:
    return CpuLinear.build(*kind, precision=wide)
