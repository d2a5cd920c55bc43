"""LN tuning: norms replaced as wholes, in a folder that we write and peft loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from exporter.adapters.ln_tuning import norms_of, write_ln_tuning
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.merge.fuse import fuse
from exporter.store.checkpoint import Checkpoint
from tests.adapters.forge import mend_json, read, spec_of
from tests.tiny import save_tiny

NORM = "model.layers.1.input_layernorm"
GAIN = np.arange(16, dtype=np.float32)


def test_norms_by_kind(tmp_path: Path):
    """Per-head norms count, biases of linears do not."""
    for kind, count, leaves in (
        ("qwen2", 5, {"weight"}),
        ("qwen3", 9, {"weight"}),
        ("gpt2", 5, {"weight", "bias"}),
    ):
        spec = check_model(Checkpoint.open(save_tiny(kind, tmp_path / kind))).spec
        norms = norms_of(spec)
        assert len(norms) == count
        assert all(set(own) == leaves for own in norms.values())


def test_peft_loads_what_we_write(tmp_path: Path):
    base = save_tiny("gpt2", tmp_path / "base")
    checked = check_model(Checkpoint.open(base))
    rng = np.random.default_rng(0)
    norms = {
        module: {leaf: rng.standard_normal(n).astype(np.float32) for leaf, n in own.items()}
        for module, own in norms_of(checked.spec).items()
    }
    write_ln_tuning(tmp_path / "a", norms)
    fused = fuse(checked, [(read(tmp_path / "a", checked.spec), 1.0)])
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    peft: Any = PeftModel.from_pretrained(model, str(tmp_path / "a"))
    merged = peft.merge_and_unload().state_dict()
    for name, tensor in fused.tensors.items():
        assert tensor.changed == any(name.startswith(f"{module}.") for module in norms)
        if tensor.changed:
            np.testing.assert_array_equal(tensor.rows(0, *tensor.shape), merged[name].numpy())


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"weight": GAIN[:8]}, "adapter-shape"),
        ({"weight": GAIN, "bias": GAIN}, "adapter-tensor-unused"),
        ({"bias": GAIN}, "adapter-tensor-missing"),
        ({"weight": GAIN * np.float32(np.nan)}, "value-not-finite"),
    ],
)
def test_refused(tmp_path: Path, parts: dict[str, Any], code: str):
    write_ln_tuning(tmp_path, {NORM: parts})
    with pytest.raises(InputRefused) as caught:
        read(tmp_path)
    assert caught.value.code == code


def test_a_linear_is_no_norm(tmp_path: Path):
    write_ln_tuning(tmp_path, {"model.layers.0.mlp.up_proj": {"weight": GAIN}})
    with pytest.raises(InputRefused) as caught:
        read(tmp_path, spec_of())
    assert caught.value.code == "adapter-module"


def test_no_tensors(tmp_path: Path):
    write_ln_tuning(tmp_path, {})
    mend_json(tmp_path / "adapter_config.json", target_modules=None)
    with pytest.raises(InputRefused) as caught:
        read(tmp_path)
    assert caught.value.code == "adapter-empty"
