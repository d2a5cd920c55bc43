"""A sparse GPT-2 in bfloat16 with a LoRA of peft's own on all its linears."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    # Few positions: the verification's prompts are as short.
    return save_tiny("gpt2", folder, dtype="bfloat16", sparsity=0.6, seed=3, n_positions=40)


@pytest.fixture(scope="session")
def gpt2_lora(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
    folder = tmp_path_factory.mktemp("hf") / "lora"
    model.save_pretrained(str(folder))
    return folder
