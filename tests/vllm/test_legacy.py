"""A 2:4 checkpoint that compressed-tensors 0.14.0.1 wrote gives the dense checkpoint's tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.legacy.write_ct import write_ct
from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).parent / "programs" / "tokens.py"
SIZES: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
FORMATS = {"sparse-24-bitmask": nm(2, 4), "sparse-bitmask": How(density=0.4)}


def test_legacy_checkpoints(tmp_path: Path, run_in_vllm: RunInVllm) -> None:
    jobs: list[dict[str, Any]] = []
    for form, how in FORMATS.items():
        where = tmp_path / form
        model = save_tiny("llama2", where / "model", dtype="bfloat16", **SIZES)
        every = {name: how for layer in range(2) for name in linears(layer)}
        _, dense = pack_pair(model, where, every)
        compressed = write_ct(dense, where / "compressed", form)
        config = json.loads((compressed / "config.json").read_text())
        assert config["quantization_config"]["sparsity_config"]["format"] == form
        jobs += [{"folder": str(compressed)}, {"folder": str(dense)}]
    found = run_in_vllm(PROGRAM, json.dumps(jobs), timeout=600)
    assert found[0] == found[1] != found[2] == found[3]
    assert [len(made) for made in found[0]] == [24, 24, 24]
