"""Small Llama folders from numpy arrays, written byte by byte: no transformers, any fault."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from exporter.store.checkpoint import Checkpoint

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 20,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SHAPES = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
LINEARS = {f"model.layers.{i}.{m}": s for i in range(2) for m, s in SHAPES.items()}
Q0 = "model.layers.0.self_attn.q_proj"
Q0W = f"{Q0}.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def tensors(*, tied: bool = False, dtype: Any = np.float32) -> dict[str, Array]:
    """Every tensor of the model of `CONFIG`; no value is zero."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (20, 16), NORM: (16,)}
    for i in range(2):
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (16,)
        shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (16,)
    shapes |= {f"{module}.weight": shape for module, shape in LINEARS.items()}
    if not tied:
        shapes[HEAD] = (20, 16)
    return {n: (rng.random(s) + 0.5).astype(np.float32).astype(dtype) for n, s in shapes.items()}


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> Path:
    """A plain safetensors file (format: README of the safetensors library)."""
    header: dict[str, Any] = {}
    at = 0
    for name, array in arrays.items():
        span = [at, at + array.nbytes]
        shape = list(array.shape)
        header[name] = {"dtype": NAMES[array.dtype.name], "shape": shape, "data_offsets": span}
        at = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def write_model(
    folder: Path,
    arrays: Mapping[str, Array] | None = None,
    config: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    *,
    tied: bool = False,
) -> Checkpoint:
    """A model folder, opened. `config` overrides single fields."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**CONFIG, "tie_word_embeddings": tied, **(config or {})}
    (folder / "config.json").write_text(json.dumps(settings))
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    arrays = tensors(tied=tied) if arrays is None else arrays
    write_safetensors(folder / "model.safetensors", arrays)
    return Checkpoint.open(folder)


def all_masks() -> dict[str, Array]:
    """A mask for every linear that keeps all, by module, bool."""
    return {module: np.ones(shape, bool) for module, shape in LINEARS.items()}


def write_masks_file(path: Path, masks: Mapping[str, Array]) -> Path:
    """Masks by module, packed by numpy."""
    packed = {f"{m}.weight_mask": np.packbits(k, axis=1) for m, k in masks.items()}
    return write_safetensors(path, packed)
