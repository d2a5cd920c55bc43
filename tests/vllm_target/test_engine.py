"""Export verified by vLLM itself, in float32, in its managed environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli import run
from tests.vllm_target.models import Rule, by_role, everything, nm, save_pruned, unstructured

MIXED = by_role(gate_proj=nm(3, 8), o_proj=everything, k_proj=nm(2, 4), rest=unstructured(0.7))
HEADS = {"hidden_size": 128, "head_dim": 32}  # vLLM's attention on a CPU takes none of 16
OLD = "vllm-24,layout=compressed-tensors"

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("kind", "rule", "target"),
    [
        ("qwen2", MIXED, "vllm-sparse"),
        pytest.param("llama2", nm(2, 4), OLD, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", nm(2, 8), "vllm-24,values=int8", marks=pytest.mark.slow),
    ],
)
def test_export_is_verified_by_vllm(
    kind: str, rule: Rule, target: str, vllm_alone: Path, tmp_path: Path
):
    del vllm_alone
    source = save_pruned(kind, tmp_path / "m", rule, **HEADS)
    out = tmp_path / "out"
    assert run([str(source), "--target", target, "-o", str(out)]) == 0
    found = json.loads((out / ".sparse-export" / "report.json").read_text())["verification"]
    assert found["verdict"]["passed"] and found["fallback"] is None
    assert found["engine"].endswith(" 0.32.0"), found["engine"]
    assert found["numbers"]["allowed_rel"] == 1e-4
