"""Shapes of random Llama models: one of 1.1 B parameters, and a ladder of sizes on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from exporter.errors import UsageError
from exporter.store.dtypes import DType

Layout = list[tuple[str, DType, tuple[int, ...]]]


@dataclass(frozen=True)
class Shape:
    """A Llama decoder with an untied head; weights are stored as bfloat16."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    max_positions: int = 2048

    @property
    def parameters(self) -> int:
        """All values of all tensors."""
        return sum(math.prod(shape) for _, _, shape in self.layout())

    @property
    def largest_tensor(self) -> int:
        """Values of the largest tensor."""
        return max(math.prod(shape) for _, _, shape in self.layout())

    def layout(self) -> Layout:
        """Every tensor in file order: name, type, shape (linears `[out, in]`)."""
        head = (self.vocab, self.hidden)
        out: Layout = [("model.embed_tokens.weight", DType.BF16, head)]
        for i in range(self.layers):
            out += [(f"model.layers.{i}.{n}.weight", DType.BF16, s) for n, s in self._layer()]
        out.append(("model.norm.weight", DType.BF16, (self.hidden,)))
        out.append(("lm_head.weight", DType.BF16, head))
        return out

    def config(self) -> dict[str, Any]:
        """config.json as transformers' LlamaConfig reads it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
        }

    def _layer(self) -> list[tuple[str, tuple[int, ...]]]:
        kv = self.hidden // self.heads * self.kv_heads
        return [
            ("self_attn.q_proj", (self.hidden, self.hidden)),
            ("self_attn.k_proj", (kv, self.hidden)),
            ("self_attn.v_proj", (kv, self.hidden)),
            ("self_attn.o_proj", (self.hidden, self.hidden)),
            ("mlp.gate_proj", (self.intermediate, self.hidden)),
            ("mlp.up_proj", (self.intermediate, self.hidden)),
            ("mlp.down_proj", (self.hidden, self.intermediate)),
            ("input_layernorm", (self.hidden,)),
            ("post_attention_layernorm", (self.hidden,)),
        ]


# The published shape of TinyLlama-1.1B (its config.json): 1,100,048,384 parameters.
TINYLLAMA = Shape("tinyllama-1.1b", 22, 2048, 5632, 32, 4, 32000)
SIZES_GB = (1, 2, 4, 8)


def sized(gigabytes: float) -> Shape:
    """TinyLlama's layers, as many as come nearest to `gigabytes` (10^9) of bfloat16 on disk.

    Embedding and head stay, so the largest tensor is the same at every size.
    """
    none, one = replace(TINYLLAMA, layers=0), replace(TINYLLAMA, layers=1)
    fixed, layer = 2 * none.parameters, 2 * (one.parameters - none.parameters)
    layers = max(1, round((gigabytes * 1e9 - fixed) / layer))
    return replace(TINYLLAMA, name=f"{gigabytes:g}gb", layers=layers)


def find_shape(name: str) -> Shape:
    """A shape by name: "tinyllama-1.1b", or "Ngb" for N in 1 to 64.

    Raises:
        UsageError: `usage`.
    """
    if name == TINYLLAMA.name:
        return TINYLLAMA
    digits = name.lower().removesuffix("gb")
    if digits != name.lower() and digits.isdecimal() and 1 <= int(digits) <= 64:
        return sized(int(digits))
    raise UsageError("usage", f"no shape {name!r}", expected=f"{TINYLLAMA.name}, 1gb ... 64gb")
