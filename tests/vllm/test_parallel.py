"""Two ranks give the tokens that two ranks of a dense folder give.

Never compared with one rank: the sum over ranks rounds in another order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
DENSE = {"SPARSE_EXPORT_EXECUTE": "dense"}  # whose sums are in vLLM's own order
PROGRAM = Path(__file__).parent / "programs" / "tokens.py"


def test_two_ranks(tmp_path: Path, run_in_vllm: RunInVllm) -> None:
    """8 heads, 2 KV heads; 2:4 attention and experts in one layer, the other unstructured. Its 328
    columns make 164 a rank, which ends inside of a tile."""
    sizes: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    sizes |= {"hidden_size": 128, "intermediate_size": 328, "moe_intermediate_size": 64}
    model = save_tiny("qwen3_moe", tmp_path / "model", dtype="bfloat16", bias=True, **sizes)
    how = {name: nm(2, 4) for name in linears(0)[:4]} | {name: How() for name in linears(1)}
    for expert, kind in enumerate((nm(2, 4), How(), How(values="int8"))):
        below = f"model.layers.0.mlp.experts.{expert}"
        how |= {f"{below}.{name}_proj": kind for name in ("gate", "up", "down")}
    jobs = [
        {"folder": str(folder), "tensor_parallel_size": 2, "env": DENSE}
        for folder in pack_pair(model, tmp_path, how)
    ]
    packed, dense = run_in_vllm(PROGRAM, json.dumps(jobs), timeout=800)
    assert packed == dense
    assert [len(made) for made in packed] == [24, 24, 24]
