"""GPT-2: learned positions, layer norms with biases, linears stored `[in, out]` (Conv1D).

For checks, merging and `--target hf`. No graph is written for it, so what only the forward needs
(activation, scaling of the scores) is left to transformers, which reads it from the same config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from exporter.arch.family import check_architecture
from exporter.arch.fields import FILE, Fields, invalid
from exporter.arch.model_spec import FusedExperts, Linear
from exporter.errors import InputRefused
from exporter.limits import LIMITS

GPT2 = "gpt2"


@cache
def _data() -> dict[str, Any]:
    text = resources.files("exporter.arch").joinpath("gpt2.json").read_text(encoding="utf-8")
    return json.loads(text)


@dataclass(frozen=True)
class Gpt2Spec:
    """A `ModelSpec`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocab: int
    max_positions: int
    tied: bool
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def family(self) -> str:
        """The config's model_type."""
        return GPT2

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def embedding(self) -> str:
        """Tensor name of the token embedding `[vocab, hidden]`."""
        return str(_data()["embedding"])

    @property
    def head(self) -> str:
        """Tensor name of the head `[vocab, hidden]`."""
        return str(_data()["head"])

    @property
    def optional_prefix(self) -> str:
        """GPT-2's own checkpoints hold the body alone, without it."""
        return str(_data()["prefix"])

    def linears(self) -> tuple[Linear, ...]:
        """Four a layer: q, k and v in one, then output, up, down."""
        return tuple(linear for i in range(self.layers) for linear in self._layer(i))

    def fused_experts(self) -> tuple[FusedExperts, ...]:
        """None."""
        return ()

    def routers(self) -> Mapping[str, str]:
        """None."""
        return {}

    def _layer(self, layer: int) -> list[Linear]:
        sizes = {
            "qkv": (3 * self.hidden, self.hidden),
            "o": (self.hidden, self.hidden),
            "up": (self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }
        return [
            Linear(module.format(i=layer), layer, role, *sizes[role], bias=True, transposed=True)
            for role, module in _data()["linears"].items()
        ]

    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor the model must have, a linear's as `[out, in]`; a tied head is left out."""
        data = _data()
        shapes: dict[str, tuple[int, ...]] = {
            self.embedding: (self.vocab, self.hidden),
            data["positions"]: (self.max_positions, self.hidden),
        }
        for layer in range(self.layers):
            norms = [norm.format(i=layer) for norm in data["norms"]]
            shapes |= {f"{n}.{leaf}": (self.hidden,) for n in norms for leaf in ("weight", "bias")}
            for linear in self._layer(layer):
                shapes[linear.weight] = (linear.out_features, linear.in_features)
                shapes[f"{linear.module}.bias"] = (linear.out_features,)
        shapes |= {f"{data['final_norm']}.{leaf}": (self.hidden,) for leaf in ("weight", "bias")}
        if not self.tied:
            shapes[self.head] = (self.vocab, self.hidden)
        return shapes


def load_gpt2(config: Mapping[str, Any]) -> Gpt2Spec:
    """Spec of a parsed config.json of model_type "gpt2".

    Raises:
        InputRefused: `arch-unsupported`, `config-invalid`.
    """
    check_architecture(config.get("architectures"), _data()["architecture"])
    fields = Fields(config, _data()["defaults"])
    if fields.flag("add_cross_attention"):
        raise InputRefused(
            "arch-unsupported",
            "add_cross_attention is true",
            expected="a decoder by itself",
            file=FILE,
        )
    hidden = fields.integer("n_embd", 1, LIMITS.dim // 4)
    heads = fields.integer("n_head", 1, hidden)
    if hidden % heads:
        raise invalid("n_embd", hidden, f"a multiple of {heads} heads")
    inner = fields.raw("n_inner")
    return Gpt2Spec(
        layers=fields.integer("n_layer", 1, LIMITS.layers),
        hidden=hidden,
        intermediate=4 * hidden if inner is None else fields.integer("n_inner", 1, LIMITS.dim),
        heads=heads,
        vocab=fields.integer("vocab_size", 1, LIMITS.vocab),
        max_positions=fields.integer("n_positions", 1, LIMITS.dim),
        tied=fields.flag("tie_word_embeddings"),
        config=config,
    )
