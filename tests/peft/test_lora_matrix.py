"""Each option of PEFT's LoraConfig, one row each, against PEFT's own unmerged forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from tests.peft.matrix import assert_forward_alike, assert_weights_alike, build
from tests.tiny import save_tiny


@dataclass(frozen=True)
class Kind:
    """A tiny base, and what its modules are called."""

    tied: bool
    pair: tuple[str, str] = ("q_proj", "v_proj")  # both have biases where the kind has any
    down: str = "down_proj"
    embedding: str = "embed_tokens"
    norm: str = "norm"
    base: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "llama2": Kind(tied=False, base={"bias": True}),
    "qwen2": Kind(tied=True),
    "gpt2": Kind(tied=True, pair=("c_attn", "c_fc"), down="c_proj", embedding="wte", norm="ln_f"),
}


def lora(**options: Any) -> LoraConfig:
    """A LoRA of rank 4 whose factors are both random."""
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
    return LoraConfig(**{**fields, **options})


def rows_of(kind: Kind) -> dict[str, dict[str, Any]]:
    """Options by row; "tied" is what a tied base becomes, where not tied."""
    one, two = kind.pair
    pair = {"target_modules": [one, two]}
    every = {"target_modules": "all-linear"}
    dora = pair | {"use_dora": True}
    apart = {"tied": False}
    return {
        "plain": pair,
        "all linears": every,
        "expression": {"target_modules": rf".*\.1\..*\.({one}|{kind.down})"},
        "rslora": pair | {"use_rslora": True, "r": 6},
        "rank pattern": every | {"rank_pattern": {kind.down: 7, rf"1\..*{one}": 2}},
        "alpha pattern": every | {"alpha_pattern": {kind.down: 11, one: 1.5}},
        "rslora with patterns": every
        | {"use_rslora": True, "rank_pattern": {one: 9}, "alpha_pattern": {kind.down: 3}},
        "layers": pair | {"layers_to_transform": [1]},
        "exclude": every | {"exclude_modules": [kind.down]},
        "dropout": pair | {"lora_dropout": 0.2},
        "fan_in_fan_out": pair | {"fan_in_fan_out": True},
        "gaussian": pair | {"init_lora_weights": "gaussian"},
        "orthogonal": pair | {"init_lora_weights": "orthogonal"},
        "mica": pair | {"init_lora_weights": "mica"},
        "eva": pair | {"init_lora_weights": "eva"},
        "bias all": pair | {"bias": "all"},
        "bias lora_only": pair | {"bias": "lora_only"},
        "lora_bias": pair | {"lora_bias": True},
        "saved head": pair | {"modules_to_save": ["lm_head"]} | apart,
        "saved embedding": pair | {"modules_to_save": [kind.embedding]} | apart,
        "saved ends and norms": pair
        | {"modules_to_save": ["lm_head", kind.embedding, kind.norm]}
        | apart,
        "saved head, tied": pair | {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
        "head": {"target_modules": [one, "lm_head"]} | apart,
        "embedding": {"target_modules": [one, kind.embedding]} | apart,
        "embedding by an expression": {
            "target_modules": rf".*({one}|{kind.embedding})",
            "use_rslora": True,
            "rank_pattern": {kind.embedding: 5},
        }
        | apart,
        "both ends": {"target_modules": [one, kind.embedding, "lm_head"]} | apart,
        "embedding, head saved": {
            "target_modules": [one, kind.embedding],
            "modules_to_save": ["lm_head"],
        }
        | apart,
        "dora": dora,
        "dora everywhere": every
        | {"use_dora": True, "use_rslora": True, "rank_pattern": {kind.down: 7}},
        "dora, bias all": dora | {"bias": "all"},
        "dora, head": {"target_modules": [one, "lm_head"], "use_dora": True} | apart,
        "dora, embedding": {"target_modules": [one, kind.embedding], "use_dora": True} | apart,
        "tokens": pair | {"trainable_token_indices": [5, 3, 11]},
        "tokens of the head": pair | {"trainable_token_indices": {"lm_head": [9, 40]}} | apart,
        "tokens of both ends": pair
        | {"trainable_token_indices": {kind.embedding: [7, 4], "lm_head": [9]}}
        | apart,
        "same tokens of both ends": pair
        | {"trainable_token_indices": {kind.embedding: [7, 4], "lm_head": [7, 4]}},
        "parameters": {
            "target_modules": [],
            "target_parameters": [f"{one}.weight", f"{kind.down}.weight"],
        },
        "both ends as parameters": {
            "target_modules": [],
            "target_parameters": [f"{kind.embedding}.weight", "lm_head.weight"],
        }
        | apart,
    }


# Rows that not every kind can have: PEFT takes no parameters beside Conv1D modules, and two ends
# that it trains as one are those of a tied base.
OTHER_ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "llama2": {
        "parameters and modules": {
            "target_modules": ["q_proj"],
            "target_parameters": ["v_proj.weight"],
            "rank_pattern": {"v_proj.weight": 3},
            "alpha_pattern": {"v_proj": 50, "v_proj.weight": 8},
        },
    },
    "qwen2": {
        "both ends, tied": {
            "target_modules": ["q_proj", "embed_tokens"],
            "ensure_weight_tying": True,
        },
        "head, tied": {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
        "both ends, tied, by an expression": {
            "target_modules": r".*(q_proj|lm_head)",
            "ensure_weight_tying": True,
        },
        # The norms differ, of columns and of rows, so even equal factors untie the ends.
        "dora, both ends, tied": {
            "target_modules": ["q_proj", "lm_head"],
            "ensure_weight_tying": True,
            "use_dora": True,
            "tied": False,
        },
    },
}

ROWS = [
    *((name, row, rows_of(kind)[row]) for name, kind in KINDS.items() for row in rows_of(kind)),
    *((name, row, rows[row]) for name, rows in OTHER_ROWS.items() for row in rows),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {name: save_tiny(name, place / name, **kind.base) for name, kind in KINDS.items()}


@pytest.mark.parametrize("name, row, options", ROWS, ids=[f"{n}-{r}" for n, r, _ in ROWS])
def test_rows(tmp_path: Path, bases: dict[str, Path], name: str, row: str, options: dict[str, Any]):
    asked = {k: v for k, v in options.items() if k != "tied"}
    case = build(name, tmp_path, lora(**asked), base=bases[name])
    fused = case.fused()
    assert fused.tied is (KINDS[name].tied and options.get("tied", True))
    assert_forward_alike(case, fused)
    assert_weights_alike(case, fused)
