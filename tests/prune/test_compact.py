"""A compacted model computes what the zeroed one does, and the exporter takes it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from exporter.check.model import check_model
from exporter.cli import run as export_run
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from harness.cli import run
from harness.prune.compact import Sizes, compact_folder
from harness.prune.plan import Rates
from harness.prune.run import MASKS, Calibration, prune_folder
from harness.prune.sparsity import Unstructured
from tests.tiny import save_tiny

CALIBRATION = Calibration(samples=4, length=16)


@pytest.mark.parametrize("kind", ["llama2", "qwen2", "qwen3"])
def test_the_smaller_model_is_the_same_function(tmp_path, kind):
    base = save_tiny(kind, tmp_path / "m", bias=True if kind == "llama2" else None)
    prune_folder(base, tmp_path / "zeroed", "wanda-sp", Unstructured(0.5), CALIBRATION)
    got = compact_folder(tmp_path / "zeroed", tmp_path / "small", masks=tmp_path / "zeroed" / MASKS)
    assert got == Sizes(2, 2 if kind == "llama2" else 1, 80)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        zeroed, small = (
            AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("zeroed", "small")
        )
        torch.testing.assert_close(small(ids).logits, zeroed(ids).logits, rtol=1e-4, atol=1e-5)
    assert small.model.layers[0].mlp.up_proj.weight.shape == (80, 64)
    spec = check_model(Checkpoint.open(tmp_path / "small")).spec
    assert (spec.heads, spec.kv_heads) == (got.heads, got.kv_heads)


def test_the_command_ends_in_what_the_exporter_takes(tmp_path, capsys):
    base = save_tiny("smollm2", tmp_path / "m")
    words = ["prune", str(base), "--method", "wanda-sp", "--sparsity", "0.4", "--length", "16"]
    assert run([*words, "-o", str(tmp_path / "z")]) == 0
    assert run(["compact", str(tmp_path / "z"), "-o", str(tmp_path / "s")]) == 0
    assert "6 heads, 2 key-value heads, 96 channels" in capsys.readouterr().out
    words = [str(tmp_path / "s"), "--target", "onnxruntime", "-o", str(tmp_path / "a")]
    assert export_run(words) == 0


def test_zeros_that_are_no_units_and_blocks_that_differ_are_refused(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    prune_folder(base, tmp_path / "a", "magnitude", Unstructured(0.5))
    with pytest.raises(InputRefused, match="no whole heads"):
        compact_folder(tmp_path / "a", tmp_path / "out")
    (tmp_path / "r.json").write_text("[0.4, 0.2]")
    prune_folder(
        base, tmp_path / "b", "wanda-sp", Unstructured(0.3), CALIBRATION,
        rates=Rates(str(tmp_path / "r.json")),
    )  # fmt: skip
    with pytest.raises(InputRefused, match="one number"):
        compact_folder(tmp_path / "b", tmp_path / "out")
    assert not (tmp_path / "out").exists()
