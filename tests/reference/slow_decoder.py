"""A slow, plain float64 decoder of the Llama family in numpy, position by position.

Written from the papers and the config alone (RMSNorm: Zhang and Sennrich 2019; rotary embedding:
Su et al. 2021, half-rotation form; grouped queries: Ainslie et al. 2023; SwiGLU: Shazeer 2020;
llama3 frequencies: Meta's llama-models `apply_scaling`). It shares no code with transformers or
with the lowering. It is also the engine of the fake target, since it computes in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = Any  # float64 ndarray


class SlowDecoder:
    """Weights by their Hugging Face names; keys and values of the past in plain lists."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
        self.weights = {k: np.asarray(v, dtype=np.float64) for k, v in weights.items()}
        self.layers = int(config["num_hidden_layers"])
        self.heads = int(config["num_attention_heads"])
        self.kv_heads = int(config.get("num_key_value_heads") or self.heads)
        self.head_dim = int(config.get("head_dim") or config["hidden_size"] // self.heads)
        self.eps = float(config["rms_norm_eps"])
        self.frequencies = frequencies(config, self.head_dim)
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self.keys: list[list[Array]] = [[] for _ in range(self.layers)]
        self.values: list[list[Array]] = [[] for _ in range(self.layers)]

    def feed(self, tokens: Sequence[int]) -> tuple[Array, dict[str, Array]]:
        """Logits `[T, V]` and hidden states `[T, hidden]` of tokens after the cache."""
        rows = [self.step(int(t)) for t in tokens]
        states = {k: np.stack([s[k] for _, s in rows]) for k in rows[0][1]}
        return np.stack([logits for logits, _ in rows]), states

    def step(self, token: int) -> tuple[Array, dict[str, Array]]:
        """Logits `[V]` and hidden states of one token; it joins the cache."""
        x = self.weights["model.embed_tokens.weight"][token]
        states = {"embedding": x}
        for i in range(self.layers):
            name = f"model.layers.{i}"
            x = x + self.attention(i, self.norm(x, f"{name}.input_layernorm.weight"))
            x = x + self.mlp(name, self.norm(x, f"{name}.post_attention_layernorm.weight"))
            states[f"layer.{i}"] = x
        x = states["norm"] = self.norm(x, "model.norm.weight")
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return head @ x, states

    def norm(self, x: Array, name: str) -> Array:
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps) * self.weights[name]

    def linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", 0.0)

    def mlp(self, name: str, x: Array) -> Array:
        gate = self.linear(f"{name}.mlp.gate_proj", x)
        up = self.linear(f"{name}.mlp.up_proj", x)
        return self.linear(f"{name}.mlp.down_proj", gate / (1.0 + np.exp(-gate)) * up)

    def attention(self, layer: int, x: Array) -> Array:
        name = f"model.layers.{layer}.self_attn"
        q = self.linear(f"{name}.q_proj", x).reshape(self.heads, self.head_dim)
        k = self.linear(f"{name}.k_proj", x).reshape(self.kv_heads, self.head_dim)
        v = self.linear(f"{name}.v_proj", x).reshape(self.kv_heads, self.head_dim)
        if f"{name}.q_norm.weight" in self.weights:
            q, k = self.norm(q, f"{name}.q_norm.weight"), self.norm(k, f"{name}.k_norm.weight")
        position = len(self.keys[layer])
        self.keys[layer].append(self.rotate(k, position))
        self.values[layer].append(v)
        q = self.rotate(q, position)
        out = np.empty((self.heads, self.head_dim))
        for head in range(self.heads):
            group = head // (self.heads // self.kv_heads)
            keys = np.stack([past[group] for past in self.keys[layer]])
            values = np.stack([past[group] for past in self.values[layer]])
            scores = keys @ q[head] / math.sqrt(self.head_dim)
            weights = np.exp(scores - scores.max())
            out[head] = (weights / weights.sum()) @ values
        return self.linear(f"{name}.o_proj", out.reshape(-1))

    def rotate(self, x: Array, position: int) -> Array:
        angle = position * self.frequencies
        half = self.head_dim // 2
        first, second = x[:, :half], x[:, half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)


def frequencies(config: Mapping[str, Any], head_dim: int) -> Array:
    """Radians per position for each pair of channels, `[head_dim / 2]`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return plain / rope["factor"]
    if kind == "llama3":
        return np.array([llama3(f, rope) for f in plain])
    assert kind == "default", kind
    return plain


def llama3(frequency: float, rope: Mapping[str, Any]) -> float:
    """One scaled frequency: long waves slowed by the factor, short ones kept, a ramp between."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    if turns < low:
        return frequency / rope["factor"]
    if turns > high:
        return frequency
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency
