"""Peak memory of lowering follows the largest tensor, not the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# A model that exists only as a rule for its rows, so that the child holds nothing else.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from backends.decoder_graph.lower import lower_decoder, plan_decoder
from backends.decoder_graph.options import GraphOptions
from exporter.arch.spec import load_spec
from exporter.memory import peak_rss_bytes
from exporter.model import CheckedModel, FusedModel, FusedTensor
from exporter.store.checkpoint import Checkpoint

layers = int(sys.argv[2])
config = dict(model_type="llama", hidden_size=1024, intermediate_size=4096, vocab_size=4096,
              num_hidden_layers=layers, num_attention_heads=16, max_position_embeddings=128,
              tie_word_embeddings=True)
spec = load_spec(config)
def reader(shape):
    return lambda r0, r1: np.full((r1 - r0, *shape[1:]), 0.5, np.float32)
tensors = {n: FusedTensor(n, s, reader(s)) for n, s in spec.tensors().items()}
checked = CheckedModel(Checkpoint(Path(), {}, config, ()), spec, {}, None, True)
model = FusedModel(checked, tensors, {}, True, {})
plan = plan_decoder(model, GraphOptions())
before = peak_rss_bytes()
lower_decoder(model, Path(sys.argv[1]), GraphOptions())
peak = peak_rss_bytes()
print(json.dumps(dict(extra=peak - before, plan=plan.peak_bytes, peak=peak)))
"""
LARGEST = 1024 * 4096 * 4


def measure(folder: Path, layers: int) -> dict[str, int]:
    folder.mkdir()
    command = [sys.executable, "-c", CHILD, str(folder), str(layers)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (folder / "model.data").unlink()
    return json.loads(out)


@pytest.mark.slow
def test_peak_is_flat_in_the_model_and_bounded_by_the_largest_tensor(tmp_path: Path):
    small, large = measure(tmp_path / "small", 1), measure(tmp_path / "large", 8)
    for figures in (small, large):
        assert figures["extra"] <= 3 * LARGEST
        assert figures["extra"] <= figures["plan"]
    assert large["peak"] <= 1.05 * small["peak"]  # 470 MB more of weights
