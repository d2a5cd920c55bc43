"""The slow decoder: float64, one row at a time, nothing cached; from an artefact's own bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from backends.vllm.read_back import read_back
from exporter.arch.rope import inverse_frequencies
from exporter.arch.spec import DecoderSpec, artefact_spec

F64 = NDArray[np.float64]


def as_bf16(x: F64) -> F64:
    """What bfloat16 values are multiplied by."""
    return x.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


class SlowDecoder:
    """Logits of a whole sequence, by the formulas of the Llama paper and its code."""

    def __init__(self, folder: Path, *, halves: bool = False) -> None:
        """`halves`: bfloat16 weights are multiplied by x rounded to bfloat16."""
        spec = artefact_spec(json.loads((folder / "config.json").read_text()))
        assert isinstance(spec, DecoderSpec)
        self.spec = spec
        self.weights: dict[str, F64] = {}
        self.bf16: set[str] = set()
        for stored in read_back(folder):
            self.weights[stored.name] = stored.rows(0, stored.shape[0]).astype(np.float64)
            values = stored.packing.values if stored.packing else stored.dtype.lower()
            if halves and values == "bf16":
                self.bf16.add(stored.name)

    def logits(self, tokens: list[int]) -> F64:
        """`[T, vocab]`."""
        return self.linear(self.states(tokens)[-1], self.head)

    def states(self, tokens: list[int]) -> list[F64]:
        """`[T, hidden]` of the embedding, after each layer, after the last norm."""
        spec, x = self.spec, self.weights[self.spec.embedding][tokens]
        found = [x]
        for i in range(spec.layers):
            h = self.norm(x, spec.name("input_norm", i))
            x = x + self.attention(h, i)
            h = self.norm(x, spec.name("post_norm", i))
            gate, up = (self.module(h, i, role) for role in ("gate", "up"))
            x = x + self.module(gate / (1 + np.exp(-gate)) * up, i, "down")
            found.append(x)
        return [*found, self.norm(x, spec.final_norm)]

    @property
    def head(self) -> str:
        return self.spec.embedding if self.spec.tied else self.spec.head

    def attention(self, h: F64, i: int) -> F64:
        spec, count = self.spec, len(h)
        q = self.module(h, i, "q").reshape(count, spec.heads, spec.head_dim)
        k = self.module(h, i, "k").reshape(count, spec.kv_heads, spec.head_dim)
        v = self.module(h, i, "v").reshape(count, spec.kv_heads, spec.head_dim)
        if spec.qk_norm:
            q = self.norm(q, spec.name("q_norm", i))
            k = self.norm(k, spec.name("k_norm", i))
        q, k = self.rotate(q), self.rotate(k)
        out = np.zeros_like(q)
        for t in range(count):
            for head in range(spec.heads):
                shared = head // (spec.heads // spec.kv_heads)
                scores = k[: t + 1, shared] @ q[t, head] / np.sqrt(spec.head_dim)
                weights = np.exp(scores - scores.max())
                out[t, head] = weights @ v[: t + 1, shared] / weights.sum()
        return self.module(out.reshape(count, -1), i, "o")

    def rotate(self, x: F64) -> F64:
        frequencies, factor = inverse_frequencies(self.spec.rope, self.spec.head_dim)
        angles = np.arange(len(x))[:, None] * frequencies[None, :].astype(np.float64)
        cos, sin = np.cos(angles)[:, None] * factor, np.sin(angles)[:, None] * factor
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def norm(self, x: F64, name: str) -> F64:
        mean = (x**2).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.spec.norm_eps) * self.weights[name]

    def module(self, x: F64, i: int, role: Any) -> F64:
        linear = self.spec.linear(i, role)
        y = self.linear(x, linear.weight)
        return y + self.weights[f"{linear.module}.bias"] if linear.bias else y

    def linear(self, x: F64, name: str) -> F64:
        return (as_bf16(x) if name in self.bf16 else x) @ self.weights[name].T
