"""Tiny models and adapters as a user would have them, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def sparse_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped model with 70 % zeros."""
    return save_tiny("smollm2", tmp_path_factory.mktemp("cli") / "sparse", sparsity=0.7, seed=1)


@pytest.fixture(scope="session")
def plain_lora(tmp_path_factory: pytest.TempPathFactory, sparse_model: Path) -> Path:
    """A LoRA that the peft library saved; its delta is dense."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(sparse_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("cli") / "lora"
    model.save_pretrained(str(folder))
    return folder
