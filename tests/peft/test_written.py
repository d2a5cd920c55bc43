"""Folders that our writers make, loaded by peft: the same deltas there as here."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from exporter.check.model import check_model
from exporter.store.checkpoint import Checkpoint
from tests.adapters import vectors
from tests.peft.matrix import Case, in_float64, values
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama2", tmp_path_factory.mktemp("base"), bias=True)


@pytest.mark.parametrize("family", vectors.FAMILIES)
def test_written_folders(tmp_path: Path, base: Path, family: str):
    checked = check_model(Checkpoint.open(base))
    shapes = {
        li.module: (li.out_features, li.in_features)
        for li in checked.spec.linears()
        if li.role in ("q", "down", "up")
    }
    slow = vectors.FAMILIES[family](tmp_path, shapes)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        peft: Any = PeftModel.from_pretrained(model, str(tmp_path))
    case = Case(checked, tmp_path, in_float64(peft))
    fused = values(case.fused())
    merged = peft.merge_and_unload().state_dict()
    for name, found in fused.items():
        want = merged[name].numpy()
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max(), name
    for module, reference in slow.items():
        before = checked.checkpoint.rows(f"{module}.weight").astype(np.float64)
        moved = merged[f"{module}.weight"].numpy() - before
        want = reference(before)
        assert np.abs(moved - want).max() <= 1e-6 * np.abs(want).max()


def test_an_oracle_of_any_number_is_ours_alone(tmp_path: Path, base: Path):
    """docs/formats/shira.md says that peft does not load it."""
    masks = {"model.layers.0.self_attn.q_proj": np.eye(64, dtype=bool)}
    vectors.shira(tmp_path, dict.fromkeys(masks, (64, 64)), masks)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(TypeError):
        PeftModel.from_pretrained(model, str(tmp_path))
