"""Each option of PEFT's LoraConfig, one row each, against PEFT's own unmerged forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.peft.matrix import Case, assert_forward_alike, assert_weights_alike, build

# Module names of two linears, an MLP linear and all linears, by kind.
KINDS: dict[str, dict[str, Any]] = {
    "llama2": {"pair": ["q_proj", "v_proj"], "down": "down_proj"},
    "qwen2": {"pair": ["q_proj", "v_proj"], "down": "down_proj"},
}
BIASED = {"llama2": {"bias": True}}


def lora(**options: Any) -> LoraConfig:
    """A LoRA of rank 4 whose factors are both random."""
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, **options})


def rows_of(kind: str) -> dict[str, dict[str, Any]]:
    """Options by row for one kind."""
    pair, down = KINDS[kind]["pair"], KINDS[kind]["down"]
    plain = {"target_modules": pair}
    every = {"target_modules": "all-linear"}
    return {
        "plain": plain,
        "all linears": every,
        "expression": {"target_modules": rf".*\.1\..*\.({pair[0]}|{down})"},
        "rslora": plain | {"use_rslora": True, "r": 6},
        "rank pattern": every | {"rank_pattern": {down: 7, rf"1\..*{pair[0]}": 2}},
        "alpha pattern": every | {"alpha_pattern": {down: 11, pair[0]: 1.5}},
        "rslora with patterns": every
        | {"use_rslora": True, "rank_pattern": {pair[0]: 9}, "alpha_pattern": {down: 3}},
        "layers": plain | {"layers_to_transform": [1]},
        "exclude": every | {"exclude_modules": [down]},
        "dropout": plain | {"lora_dropout": 0.2},
        "fan_in_fan_out": plain | {"fan_in_fan_out": True},
        "bias all": plain | {"bias": "all"},
        "bias lora_only": plain | {"bias": "lora_only"},
        "lora_bias": plain | {"lora_bias": True},
    }


ROWS = [(kind, row) for kind in KINDS for row in rows_of(kind)]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    kind, row = request.param
    return build(kind, tmp_path, lora(**rows_of(kind)[row]), base=BIASED.get(kind))


@pytest.mark.parametrize("case", ROWS, ids=[f"{k}-{r}" for k, r in ROWS], indirect=True)
def test_rows(case: Case):
    fused = case.fused()
    assert_forward_alike(case, fused)
    assert_weights_alike(case, fused)
