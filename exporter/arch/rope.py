"""Tables of the rotary embedding, with the roundings of transformers' float32 code.

Source: transformers 5.19, `modeling_rope_utils.py` and `LlamaRotaryEmbedding`. The roundings
matter: one unit in the last place of a frequency, times position 8192, is an error of 5e-4.
torch's vectorised `pow` is itself off by one unit for some inputs on some CPUs; ours is the
correctly rounded value, which is what torch gives elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from exporter.arch.spec import DecoderSpec, Rope
from exporter.store.dtypes import F32

_ONE = np.float32(1)


def rope_tables(spec: DecoderSpec, positions: int) -> tuple[F32, F32]:
    """`(cos, sin)`, float32 `[positions, head_dim]`, both halves of a row equal.

    The factor that YaRN puts on attention is in them.
    """
    cos, sin = half_tables(spec, positions)
    return np.concatenate([cos, cos], axis=1), np.concatenate([sin, sin], axis=1)


def half_tables(spec: DecoderSpec, positions: int) -> tuple[F32, F32]:
    """`(cos, sin)`, float32 `[positions, head_dim / 2]`: the first half, which says it all."""
    frequencies, factor = inverse_frequencies(spec.rope, spec.head_dim)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    wide = angles.astype(np.float64)
    scale = np.float32(factor)
    return np.cos(wide).astype(np.float32) * scale, np.sin(wide).astype(np.float32) * scale


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[F32, float]:
    """Float32 `[head_dim / 2]`, and the factor on cos and sin."""
    powers = _powers(rope.theta, head_dim)
    plain = _ONE / powers
    numbers: Mapping[str, float] = rope.scaling
    if rope.kind == "linear":
        return plain / np.float32(numbers["factor"]), 1.0
    if rope.kind == "llama3":
        return _llama3(plain, numbers), 1.0
    if rope.kind == "yarn":
        return _yarn(powers, rope.theta, head_dim, numbers), _attention_factor(numbers)
    return plain, 1.0


def _powers(theta: float, dim: int) -> F32:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _llama3(plain: F32, numbers: Mapping[str, float]) -> F32:
    factor = np.float32(numbers["factor"])
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    original = numbers["original"]
    lengths = (_ONE / plain) * np.float32(2 * math.pi)  # torch divides a number by a tensor so
    long = lengths > np.float32(original / low)
    middle = ~(lengths < np.float32(original / high)) & ~long
    smooth = ((_ONE / lengths) * np.float32(original) - np.float32(low)) / np.float32(high - low)
    scaled = np.where(long, plain / factor, plain)
    between = (_ONE - smooth) * scaled / factor + smooth * scaled
    return np.where(middle, between, scaled).astype(np.float32)


def _yarn(powers: F32, theta: float, dim: int, numbers: Mapping[str, float]) -> F32:
    def turn(rotations: float) -> float:
        turns = numbers["original"] / (rotations * 2 * math.pi)
        return (dim * math.log(turns)) / (2 * math.log(theta))

    low, high = turn(numbers["beta_fast"]), turn(numbers["beta_slow"])
    if numbers["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    steps = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = _ONE - np.clip(steps, 0, 1)
    extrapolated = _ONE / powers
    interpolated = _ONE / (np.float32(numbers["factor"]) * powers)
    return (interpolated * (_ONE - keep) + extrapolated * keep).astype(np.float32)


def _attention_factor(numbers: Mapping[str, float]) -> float:
    def scale(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(numbers["factor"]) + 1.0 if numbers["factor"] > 1 else 1.0

    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    top, bottom = numbers.get("mscale", 0.0), numbers.get("mscale_all_dim", 0.0)
    return scale(top) / scale(bottom) if top and bottom else scale()
