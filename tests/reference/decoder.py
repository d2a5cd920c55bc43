"""A decoder in float64 numpy, written to be read: the slow reference of the graph.

No cache, no blocks, no tricks; one query position at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.arch.spec import DecoderSpec

F64 = NDArray[np.float64]


def logits(spec: DecoderSpec, weights: Mapping[str, Any], tokens: Sequence[int]) -> F64:
    """Float64 `[T, vocab]` for `tokens`; default rotary embedding only."""
    w = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    x = w[spec.embedding][list(tokens)]
    for i in range(spec.layers):
        x = x + _attention(spec, w, i, _norm(spec, x, w[spec.name("input_norm", i)]))
        x = x + _mlp(spec, w, i, _norm(spec, x, w[spec.name("post_norm", i)]))
    head = w[spec.embedding if spec.tied else spec.head]
    return _norm(spec, x, w[spec.final_norm]) @ head.T


def _norm(spec: DecoderSpec, x: F64, gain: F64) -> F64:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.norm_eps) * gain


def _linear(w: Mapping[str, F64], x: F64, module: str) -> F64:
    return x @ w[f"{module}.weight"].T + w.get(f"{module}.bias", np.zeros(1))


def _rotate(spec: DecoderSpec, x: F64, position: int) -> F64:
    """One head `[D]`: pair (i, i + D/2) turned by `position * theta^(-2i/D)`."""
    half = spec.head_dim // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position * spec.rope.theta ** (-2 * i / spec.head_dim)
        a, b = x[i], x[i + half]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def _attention(spec: DecoderSpec, w: Mapping[str, F64], layer: int, x: F64) -> F64:
    count, size = len(x), spec.head_dim
    parts: dict[str, F64] = {}
    for role, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads)):
        y = _linear(w, x, spec.name(role, layer)).reshape(count, heads, size)
        if spec.qk_norm and role != "v":
            y = _norm(spec, y, w[spec.name(f"{role}_norm", layer)])
        if role != "v":
            y = np.stack([[_rotate(spec, y[t, h], t) for h in range(heads)] for t in range(count)])
        parts[role] = y
    mixed = np.zeros((count, spec.heads, size))
    for t in range(count):
        for h in range(spec.heads):
            shared = h // (spec.heads // spec.kv_heads)
            scores = parts["k"][: t + 1, shared] @ parts["q"][t, h] / np.sqrt(size)
            shares = np.exp(scores - scores.max())
            mixed[t, h] = shares / shares.sum() @ parts["v"][: t + 1, shared]
    return _linear(w, mixed.reshape(count, -1), spec.name("o", layer))


def _mlp(spec: DecoderSpec, w: Mapping[str, F64], layer: int, x: F64) -> F64:
    gate = _linear(w, x, spec.name("gate", layer))
    up = _linear(w, x, spec.name("up", layer))
    return _linear(w, gate / (1 + np.exp(-gate)) * up, spec.name("down", layer))
