"""A decoder of Llama's form, as data: enough to build its graph and to name all its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exporter.arch.family import BiasRule, Family
from exporter.arch.fields import FILE, Fields, invalid
from exporter.arch.model_spec import FusedExperts, Linear, weight_shapes
from exporter.arch.rope_config import parse_rope
from exporter.errors import InputRefused
from exporter.limits import LIMITS

Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
ROLES: tuple[Role, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding, half-rotation form of transformers' Llama (`modeling_rope_utils.py`).

    `kind` is "default", "linear", "llama3" or "yarn"; `scaling` holds its numbers, checked and
    made complete by `exporter.arch.rope_config`.
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
        return tuple(self.linear(i, role) for i in range(self.layers) for role in ROLES)

    def linear(self, layer: int, role: Role) -> Linear:
        """One of them."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "q": (query, self.hidden, self.qkv_bias),
            "k": (key, self.hidden, self.qkv_bias),
            "v": (key, self.hidden, self.qkv_bias),
            "o": (self.hidden, query, self.o_bias),
            "gate": (self.intermediate, self.hidden, self.mlp_bias),
            "up": (self.intermediate, self.hidden, self.mlp_bias),
            "down": (self.hidden, self.intermediate, self.mlp_bias),
        }
        return Linear(self.name(role, layer), layer, role, *sizes[role])

    def name(self, part: str, layer: int) -> str:
        """Module of a role, or tensor of a norm, in one layer."""
        return self.names[part].format(i=layer)

    @property
    def optional_prefix(self) -> str:
        """None is left out."""
        return ""

    @property
    def full_context(self) -> int:
        """Longest sequence over which attention is full: positions, or the sliding window."""
        return min(self.max_positions, self.sliding_window or self.max_positions)

    def fused_experts(self) -> tuple[FusedExperts, ...]:
        """None."""
        return ()

    def routers(self) -> Mapping[str, str]:
        """None."""
        return {}

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor the model must have and its shape; a tied head is left out."""
        shapes: dict[str, tuple[int, ...]] = {self.embedding: (self.vocab, self.hidden)}
        for layer in range(self.layers):
            shapes |= self.norms(layer)
            shapes |= weight_shapes(self.linear(layer, role) for role in ROLES)
        return {**shapes, **self.last()}

    def norms(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """The norms of one layer."""
        norms = {"input_norm": self.hidden, "post_norm": self.hidden}
        if self.qk_norm:
            norms |= {"q_norm": self.head_dim, "k_norm": self.head_dim}
        return {self.name(norm, layer): (size,) for norm, size in norms.items()}

    def last(self) -> Mapping[str, tuple[int, ...]]:
        """What follows the layers: the last norm, and a head of its own."""
        shapes: dict[str, tuple[int, ...]] = {self.final_norm: (self.hidden,)}
        if not self.tied:
            shapes[self.head] = (self.vocab, self.hidden)
        return shapes


def load_decoder(config: Mapping[str, Any], family: Family) -> DecoderSpec:
    """Spec of a parsed config.json of this family.

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`.
    """
    fields = Fields(config, family.defaults)
    layers = fields.integer("num_hidden_layers", 1, LIMITS.layers)
    hidden = fields.integer("hidden_size", 1, LIMITS.dim)
    heads, kv_heads, head_dim = _heads(fields, hidden)
    positions = fields.integer("max_position_embeddings", 1, 1 << 31)
    bias = _biases(family.bias, fields)
    if fields.text("hidden_act") not in ("silu", "swish"):
        found = f"hidden_act is {fields.text('hidden_act')!r:.60}"
        raise InputRefused("arch-unsupported", found, expected="silu", file=FILE)
    return DecoderSpec(
        family=family.family,
        layers=layers,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 1, LIMITS.dim),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=fields.integer("vocab_size", 1, LIMITS.vocab),
        max_positions=positions,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0),
        activation="silu",
        rope=Rope(*parse_rope(fields, positions)),
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=bias[0],
        o_bias=bias[1],
        mlp_bias=bias[2],
        qk_norm=family.qk_norm,
        sliding_window=_window(family, fields, layers, positions),
        embedding=family.embedding,
        final_norm=family.final_norm,
        head=family.head,
        names=family.names,
        config=config,
    )


def _heads(fields: Fields, hidden: int) -> tuple[int, int, int]:
    heads = fields.integer("num_attention_heads", 1, LIMITS.dim)
    given = fields.raw("num_key_value_heads") is not None
    kv_heads = fields.integer("num_key_value_heads", 1, heads) if given else heads
    if heads % kv_heads:
        raise invalid("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
    if fields.raw("head_dim") is None:
        if hidden % heads:
            raise invalid("hidden_size", hidden, f"a multiple of {heads} heads, or a head_dim")
        head_dim = hidden // heads
    else:
        head_dim = fields.integer("head_dim", 1, LIMITS.dim)
    if head_dim % 2 or heads * head_dim > LIMITS.dim:
        raise invalid("head_dim", head_dim, f"even, and heads x head_dim up to {LIMITS.dim}")
    return heads, kv_heads, head_dim


def _biases(rule: BiasRule, fields: Fields) -> tuple[bool, bool, bool]:
    def holds(value: bool | str) -> bool:
        return fields.flag(value) if isinstance(value, str) else value

    return holds(rule.qkv), holds(rule.o), holds(rule.mlp)


def _window(family: Family, fields: Fields, layers: int, positions: int) -> int | None:
    """The sliding window where it hides something from some layer, else None."""
    if family.window == "never" or fields.raw("sliding_window") is None:
        return None
    if family.window == "flag" and not (
        fields.flag("use_sliding_window") and _slides(fields, layers)
    ):
        return None
    window = fields.integer("sliding_window", 1, 1 << 31)
    return window if window < positions else None


def _slides(fields: Fields, layers: int) -> bool:
    kinds: Any = fields.raw("layer_types")
    if kinds is None:
        fallback = Fields(fields.values, {"max_window_layers": 28})
        return fallback.integer("max_window_layers", 0, LIMITS.layers) < layers
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= {*known}:
        raise invalid("layer_types", kinds, f"{layers} of {', '.join(known)}")
    return "sliding_attention" in kinds
