"""With torch.compile, packed gives the tokens that dense gives with torch.compile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
PROGRAM = Path(__file__).parent / "programs" / "tokens.py"


def test_compiled(tmp_path: Path, run_in_vllm: RunInVllm) -> None:
    """In float32, and packed in memory all the while: the ops are then part of the graph, that of
    the kernels, and that which decompresses, where there are integers."""
    sizes: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
    model = save_tiny("llama2", tmp_path / "model", dtype="float32", **sizes)
    hows = [How(values="fp32"), nm(2, 4, "fp32"), How(values="int8"), How(values="fp32")]
    hows += [nm(2, 8, "fp32"), How("dense", "fp32"), How(values="int4", group=128)]
    packed, dense = pack_pair(model, tmp_path, dict(zip(linears(0), hows, strict=True)))
    # vLLM's own choice for a float32 folder is bfloat16, where sums in another order show.
    how: dict[str, Any] = {"enforce_eager": False, "dtype": "float32"}
    jobs = [
        {"folder": str(packed), "env": {"SPARSE_EXPORT_MEMORY": "low"}, **how},
        {"folder": str(dense), **how},
    ]
    cache = {"VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    found, wanted = run_in_vllm(PROGRAM, json.dumps(jobs), env=cache, timeout=800)
    assert found == wanted
    assert [len(made) for made in found] == [24, 24, 24]
