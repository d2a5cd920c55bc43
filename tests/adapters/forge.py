"""Adapter folders for tests: PEFT's layout written by hand, so that each part can be broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import save_file

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.load import load_adapter
from exporter.arch.model_spec import ModelSpec
from exporter.arch.spec import DecoderSpec, load_spec
from exporter.sparsity.mask import Mask

PREFIX = "base_model.model."
DIGEST = "ab" * 32
BASE = BaseIdentity("tiny-base", lambda: DIGEST)


def config_of(**changes: Any) -> dict[str, Any]:
    """config.json of a two-layer Llama: hidden 16, 4 heads over 2 KV heads, head apart."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        **changes,
    }


def spec_of(**changes: Any) -> DecoderSpec:
    """The spec of `config_of`."""
    return cast(DecoderSpec, load_spec(config_of(**changes)))


def factors(
    spec: ModelSpec, modules: list[str], rank: int = 4, seed: int = 0
) -> dict[str, tuple[Any, Any]]:
    """Random float32 (A, B) by module."""
    rng = np.random.default_rng(seed)
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    shapes["lm_head"] = (spec.vocab, spec.hidden)
    return {
        m: (
            rng.standard_normal((rank, shapes[m][1])).astype(np.float32),
            rng.standard_normal((shapes[m][0], rank)).astype(np.float32),
        )
        for m in modules
    }


def targeted(spec: ModelSpec, *roles: str) -> list[str]:
    """Modules of the roles ("q", "down") in all layers."""
    return [li.module for li in spec.linears() if li.role in roles]


def tensors_of(pairs: dict[str, tuple[Any, Any]], infix: str = "") -> dict[str, Any]:
    """PEFT's tensor names over `factors`."""
    return {
        f"{PREFIX}{m}.lora_{side}{infix}.weight": values
        for m, pair in pairs.items()
        for side, values in zip("AB", pair, strict=True)
    }


def write_lora(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    """A LoRA folder; `config` are fields of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/tiny-base",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def simple_lora(folder: Path, spec: ModelSpec, **config: Any) -> Path:
    """A sound LoRA of rank 4 on q and v."""
    return write_lora(folder, tensors_of(factors(spec, targeted(spec, "q", "v"))), **config)


def read(folder: Path, spec: ModelSpec | None = None, base: BaseIdentity = BASE) -> Adapter:
    """`load_adapter` on the untied spec of `config_of`, unless told otherwise."""
    return load_adapter(folder, spec or spec_of(), base)


def random_masks(spec: ModelSpec, modules: list[str], seed: int = 5) -> dict[str, Mask]:
    """A random half-dense mask by module."""
    rng = np.random.default_rng(seed)
    shapes = {li.module: (li.out_features, li.in_features) for li in spec.linears()}
    return {m: Mask.from_bool(rng.random(shapes[m]) < 0.5) for m in modules}


def mend_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    for key, new in changes.items():
        value.pop(key, None)
        if new is not None:
            value[key] = new
    path.write_text(json.dumps(value))
