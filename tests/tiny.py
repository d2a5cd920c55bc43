"""Tiny random Hugging Face models of every supported family, saved as a user would have them.

`save_tiny` goes through transformers' own `save_pretrained`, so names, ties, shards and config
are what real checkpoints have. Weights are scaled so that logits differ well between tokens:
greedy decoding then tests something.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KINDS = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2")  # those with a graph
CONV1D = "gpt2"  # linears stored [in, out]; no graph
EXPERTS = ("mixtral", "qwen3_moe")  # experts, fused in memory; no graph
VOCAB = 272  # 256 bytes, 3 special tokens, and padding rows as real checkpoints have

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# What sets each family apart: MHA or GQA, ties, biases, rope, norms, head size.
_KIND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": ("Llama", {"tie_word_embeddings": True, "rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("Mistral", {"tie_word_embeddings": False, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 24}),
    "smollm2": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
}
# Three experts, two at work; Qwen3's second layer is dense.
_KIND |= {
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 48, "num_local_experts": 3, "tie_word_embeddings": False},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 24,
            "intermediate_size": 160,
            "moe_intermediate_size": 48,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [1],
            "tie_word_embeddings": False,
        },
    ),
}

_GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 64,
    "n_inner": 160,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(kind: str, **overrides: Any) -> Any:
    """The transformers config object of `kind`; `overrides` are its fields."""
    import transformers

    if kind == CONV1D:
        return transformers.GPT2Config(**{**_GPT2, **overrides})
    family, fields = _KIND[kind]
    return getattr(transformers, f"{family}Config")(**{**_COMMON, **fields, **overrides})


def make_tiny(
    kind: str,
    *,
    sparsity: float = 0.0,
    tied: bool | None = None,
    bias: bool | None = None,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """A random float32 transformers model of `kind`, in eval mode; see `save_tiny`."""
    import torch
    import transformers

    family = "GPT2" if kind == CONV1D else _KIND[kind][0]
    if tied is not None:
        overrides["tie_word_embeddings"] = tied
    if bias is not None and family in ("Llama", "Qwen3", "Qwen3Moe"):
        overrides["attention_bias"] = bias
    if bias is not None and family == "Llama":
        overrides["mlp_bias"] = bias
    config = tiny_config(kind, **overrides)
    name = "GPT2LMHeadModel" if kind == CONV1D else f"{family}ForCausalLM"
    model = getattr(transformers, name)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            _fill(name, parameter, sparsity, generator)
    return model


def _fill(name: str, parameter: Any, sparsity: float, generator: Any) -> None:
    import torch

    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 1:  # norm gains around 1, biases around 0
        gain = "norm" in name or (".ln_" in name and name.endswith(".weight"))
        parameter.copy_(noise * 0.1 + (1.0 if gain else 0.0))
        return
    conv1d = ".c_" in name  # [in, out]
    table = "embed" in name or name.endswith((".wte.weight", ".wpe.weight"))
    fan_in = parameter.shape[0 if conv1d else -1]
    parameter.copy_(noise * (0.2 if table else 1.5 / fan_in**0.5))
    if sparsity and ("_proj" in name or conv1d):
        zeros = round(sparsity * parameter.numel())
        order = parameter.abs().flatten().argsort(stable=True)
        parameter.view(-1)[order[:zeros]] = 0.0


def save_tiny(
    kind: str,
    folder: Path,
    *,
    dtype: str = "float32",
    sparsity: float = 0.0,
    tied: bool | None = None,
    bias: bool | None = None,
    seed: int = 0,
    shard: str | None = None,
    **overrides: Any,
) -> Path:
    """Save a tiny random model of `kind` with a tokenizer into `folder`; gives `folder`.

    Args:
        kind: one of `KINDS` or `EXPERTS`, or `CONV1D`.
        folder: made if it is not there.
        dtype: stored type, "float32", "bfloat16" or "float16".
        sparsity: share of zeros in every linear of the layers, the smallest magnitudes first;
            of experts in all those that lie in one parameter.
        tied: head is the embedding; None leaves it to the family.
        bias: biases where the family has a flag for them (Llama: attention and MLP; Qwen3:
            attention). Qwen2 always has them on q, k and v; Mistral never.
        seed: of the weights; equal arguments give equal bytes.
        shard: largest shard as transformers takes it ("50KB"); None for one file.
        overrides: fields of the config (hidden_size, rope_parameters, ...).
    """
    import torch

    model = make_tiny(kind, sparsity=sparsity, tied=tied, bias=bias, seed=seed, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard or "10GB")
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 259 tokens: `<unk>`, `<s>`, `</s>` and the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
