"""The real model: what the conversion must give, and that it speaks English."""

from __future__ import annotations

import json

import pytest
import torch

from exporter.store.checkpoint import Checkpoint
from harness.hf import load_float32, load_tokenizer
from harness.models.smollm2 import fetch_smollm2
from harness.text import draw, windows

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder():
    return fetch_smollm2(say=lambda _: None)


def test_the_config_is_smollm2s(folder):
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "dtype": "bfloat16",
    }
    assert {key: config[key] for key in expected} == expected
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert config["rms_norm_eps"] == pytest.approx(1e-5)


def test_the_folder_opens_strictly_with_the_tie_stored_once(folder):
    checkpoint = Checkpoint.open(folder)
    assert len(checkpoint.entries) == 272
    assert "lm_head.weight" not in checkpoint.entries
    assert {entry.dtype.value for entry in checkpoint.entries.values()} == {"BF16"}


def test_digits_are_split_one_by_one(folder):
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("In 2019").input_ids)
    assert tokens == ["In", "\u0120", "2", "0", "1", "9"]


def test_it_knows_paris_and_predicts_english(folder):
    model, tokenizer = load_float32(folder), load_tokenizer(folder)
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
        assert tokenizer.decode([best]) == " Paris"
        text = torch.from_numpy(draw(windows(tokenizer, "builtin", 128), 4, seed=0))
        assert float(model(input_ids=text, labels=text).loss) < 4.0  # 10.8 is chance
