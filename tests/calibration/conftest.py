"""A sparse model, a dense LoRA on it, and a text to measure on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.check.model import check_model
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import factors, targeted, tensors_of, write_lora
from tests.tiny import save_tiny

WORDS = ("the cat sat on the mat and looked at the dog that lay in the sun near a small house",)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama2", tmp_path_factory.mktemp("cal") / "model", sparsity=0.7, seed=3)


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    spec = check_model(Checkpoint.open(model)).spec
    found = factors(spec, targeted(spec, "q", "v", "gate", "down"))
    small = {m: (a * np.float32(0.1), b * np.float32(0.1)) for m, (a, b) in found.items()}
    return write_lora(
        tmp_path_factory.mktemp("cal") / "lora",
        tensors_of(small),
        target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"],
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = WORDS[0].split()
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("cal") / "text.txt"
    path.write_text(" ".join(rng.choice(words, 1500)))
    return path
