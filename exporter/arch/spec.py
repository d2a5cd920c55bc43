"""What a decoder is, as data: enough to build its graph and to name all of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Linear:
    """One prunable linear layer, `y = x W^T (+ b)`, `W [out, in]`."""

    module: str  # "model.layers.0.self_attn.q_proj"
    layer: int
    role: Role
    out_features: int
    in_features: int
    bias: bool

    @property
    def weight(self) -> str:
        """Tensor name of the weight."""
        return f"{self.module}.weight"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding, half-rotation form of transformers' Llama (`modeling_rope_utils.py`).

    `scaling` is the config's rope_parameters/rope_scaling as parsed: kind in
    {"default", "linear", "dynamic" (refused), "llama3", "yarn"} and its numbers.
    """

    theta: float
    kind: str
    scaling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer of the Llama family."""

    family: str  # "llama", "mistral", "qwen2", "qwen3"
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    norm_eps: float
    activation: Literal["silu"]
    rope: Rope
    tied: bool  # lm_head is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over head_dim of q and k before rope (Qwen3)
    sliding_window: int | None  # None where attention is full over max_positions
    embedding: str  # tensor name "model.embed_tokens.weight"
    final_norm: str  # "model.norm.weight"
    head: str  # "lm_head.weight"
    names: Mapping[str, str]  # role or norm -> template with "{i}", from the family's data file
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def linears(self) -> tuple[Linear, ...]:
        """All prunable linears, layer by layer in `ROLES` order."""
        raise NotImplementedError  # GRAPH

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor the model must have and its shape; a tied head is left out."""
        raise NotImplementedError  # GRAPH


def load_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Spec of a parsed config.json, by the data files in `exporter/arch/data`.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`, `model-quantised`.
    """
    raise NotImplementedError  # GRAPH
