"""A random GGUF of the shape: what llama.cpp runs beside us. Layers hold the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.engine.shape import VOCAB, spec
from exporter.arch.decoder import ROLES

_NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip


def write_gguf(file: Path, layers: int, kind: str) -> Path:
    """`kind`: F16, Q8_0 or Q4_0, whose embedding, which is the head, is Q8_0."""
    import gguf

    made, rng = spec(layers), np.random.default_rng(0)
    partial = file.with_suffix(".partial")
    writer: Any = gguf.GGUFWriter(str(partial), "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(made.hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(made.intermediate)
    writer.add_head_count(made.heads)
    writer.add_head_count_kv(made.kv_heads)
    writer.add_layer_norm_rms_eps(made.norm_eps)
    writer.add_rope_dimension_count(made.head_dim)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([1] * VOCAB)

    def weight(shape: tuple[int, int], as_kind: str) -> tuple[Any, Any]:
        values = rng.standard_normal(shape, np.float32) / np.sqrt(np.float32(shape[1]))
        chosen = gguf.GGMLQuantizationType[as_kind]
        return gguf.quants.quantize(values, chosen), chosen

    top = weight((VOCAB, made.hidden), "Q8_0" if kind == "Q4_0" else kind)
    writer.add_tensor("token_embd.weight", top[0], raw_dtype=top[1])
    linears = {role: made.linear(0, role) for role in ROLES}
    once = {r: weight((each.out_features, each.in_features), kind) for r, each in linears.items()}
    ones = np.ones(made.hidden, np.float32)
    for i in range(layers):
        for role, (data, chosen) in once.items():
            writer.add_tensor(f"blk.{i}.{_NAMES[role]}.weight", data, raw_dtype=chosen)
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(file)
