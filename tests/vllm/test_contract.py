"""vLLM has what typings/vllm says, and our method leaves other people's checkpoints alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.conftest import RunInVllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
STUBS = HERE.parent.parent / "typings" / "vllm"
SPARSITY = {"format": "sparse-24-bitmask", "targets": ["Linear"]}
CONFIGS: list[Any] = [
    {"quant_method": "sparse-export"},
    {"quant_method": "compressed-tensors", "sparsity_config": SPARSITY},
    {"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": None},
    {"quant_method": "fp8", "activation_scheme": "dynamic"},
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
]


@pytest.fixture(scope="module")
def told(run_in_vllm: RunInVllm) -> Any:
    return run_in_vllm(HERE / "programs" / "contract.py", STUBS, json.dumps(CONFIGS))


def test_the_stubs_are_vllm(told: Any) -> None:
    assert told["missing"] == []


def test_registering_twice_changes_nothing(told: Any) -> None:
    assert told["registered"] == [True, True]
    assert told["v2"] == 1


def test_only_ours_and_legacy_checkpoints_are_taken(told: Any) -> None:
    """Called as vLLM 0.32 calls it, with `hf_config`: an older signature would raise for all."""
    assert told["ours"] == ["sparse-export", "sparse-export", *[None] * (len(CONFIGS) - 2)]
