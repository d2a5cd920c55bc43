"""Writes a PEFT LoRA of random factors for every linear of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.adapters.peft_files import write_peft
from exporter.arch.spec import load_spec
from exporter.store.checkpoint import Checkpoint

STD = 0.02


def write_random_lora(model: Path, out: Path, rank: int, seed: int = 0) -> Path:
    """A LoRA of `rank` with alpha 2 `rank`, float32, on all linears of the layers of `model`.

    Raises:
        InputRefused: a model that cannot be read; `output-failed`.
    """
    checkpoint = Checkpoint.open(model)
    linears = load_spec(checkpoint.config).linears()
    checkpoint.close()
    dice = np.random.default_rng(seed)
    tensors: dict[str, NDArray[Any]] = {}
    for linear in linears:
        for part, shape in (
            ("lora_A", (rank, linear.in_features)),
            ("lora_B", (linear.out_features, rank)),
        ):
            values = dice.standard_normal(shape, np.float32) * np.float32(STD)
            tensors[f"base_model.model.{linear.module}.{part}.weight"] = values
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({linear.module.rpartition(".")[2] for linear in linears}),
    }
    write_peft(out, config, tensors)
    return out
