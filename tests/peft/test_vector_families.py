"""AdaLoRA, LoHa, LoKr, (IA)^3, VeRA, SHiRA, LN tuning: each option against peft itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    ShiraConfig,
    VeraConfig,
)

from tests.peft.matrix import Case, assert_forward_alike, assert_weights_alike, build

# Module names by kind: two of the attention, one of the MLP.
NAMES: dict[str, dict[str, Any]] = {
    "llama2": {"pair": ["q_proj", "v_proj"], "down": "down_proj", "base": {"bias": True}},
    "qwen2": {"pair": ["q_proj", "v_proj"], "down": "down_proj", "base": {}},
    "gpt2": {"pair": ["c_attn", "c_fc"], "down": "c_proj", "base": {}},
}
EVERY: dict[str, Any] = {"target_modules": "all-linear"}
BUDGET = [True, False, True, True, False, False]


def pair(kind: str) -> dict[str, Any]:
    return {"target_modules": NAMES[kind]["pair"]}


def prune(case: Any) -> None:
    """What AdaLoRA's budget leaves: singular values of zero, and a pattern of what stays."""
    config = case.peft_config["default"]
    config.rank_pattern = {}
    for name, parameter in case.named_parameters():
        if "lora_E" in name:
            key = name.removeprefix("base_model.model.")
            kept = BUDGET if "layers.0" in name or "h.0" in name else [False] * 6
            kept = [True] * 6 if "v_proj" in name or "c_fc" in name else kept
            config.rank_pattern[key] = kept
            with torch.no_grad():
                parameter[~torch.tensor(kept)] = 0.0


def adalora(**options: Any) -> AdaLoraConfig:
    fields: dict[str, Any] = {"init_r": 6, "lora_alpha": 30, "total_step": 10, **options}
    return AdaLoraConfig(**fields)


def rows_of(kind: str) -> dict[str, tuple[Any, Any]]:
    """Config and tweak by row."""
    two, down = pair(kind), NAMES[kind]["down"]
    rows: dict[str, tuple[Any, Any]] = {
        "adalora": (adalora(**EVERY), None),
        "adalora pruned": (adalora(**two), prune),
        "adalora bias": (adalora(**two, bias="lora_only"), None),
        "adalora ignores": (
            adalora(
                **two,
                use_rslora=True,
                alpha_pattern={two["target_modules"][0]: 90},
                lora_bias=True,
                r=3,
                lora_dropout=0.3,
            ),
            None,
        ),
        "adalora without alpha": (adalora(**two, lora_alpha=0), None),
        "ia3": (
            IA3Config(**EVERY, feedforward_modules=[down], init_ia3_weights=False),
            None,
        ),
        "ia3 expression": (
            IA3Config(
                target_modules=rf".*\.(0|1)\..*({two['target_modules'][0]}|{down})",
                feedforward_modules=rf".*\.{down}",
                exclude_modules=rf".*\.1\..*{down}",
            ),
            None,
        ),
        "ia3 defaults": (IA3Config(), None),
        "vera": (VeraConfig(**EVERY, r=5), None),
        "vera redrawn": (
            VeraConfig(**two, r=7, save_projection=False, projection_prng_key=11, d_initial=0.5),
            None,
        ),
        "vera bias": (VeraConfig(**two, r=3, bias="vera_only", vera_dropout=0.1), None),
        "vera layers": (VeraConfig(**two, r=3, layers_to_transform=[1], fan_in_fan_out=True), None),
    }
    norms = ["ln_1", "ln_f"] if kind == "gpt2" else None
    rows["ln tuning"] = (LNTuningConfig(target_modules=norms, exclude_modules=r".*\.0\..*"), None)
    if kind != "gpt2":  # peft has none of these on a Conv1D
        rows |= _linear_only(two, down)
    return rows


def _linear_only(two: dict[str, Any], down: str) -> dict[str, tuple[Any, Any]]:
    patterns: dict[str, Any] = {
        "rank_pattern": {down: 7, r"1\..*q_proj": 2},
        "alpha_pattern": {"q_proj": 11, down: 1.5},
    }
    return {
        "loha": (LoHaConfig(**EVERY, r=4, alpha=60), None),
        "loha patterns": (LoHaConfig(**EVERY, **patterns), None),
        "loha dropout": (
            LoHaConfig(**two, rank_dropout=0.2, module_dropout=0.1, use_effective_conv2d=True, r=2),
            None,
        ),
        "loha layers": (
            LoHaConfig(**two, exclude_modules=["v_proj"], layers_to_transform=[0]),
            None,
        ),
        "lokr": (LoKrConfig(**EVERY, r=3, alpha=6), None),
        "lokr both": (LoKrConfig(**EVERY, r=2, decompose_both=True), None),
        "lokr whole": (LoKrConfig(**EVERY, r=64, alpha=300, init_weights="lycoris"), None),
        "lokr factor": (
            LoKrConfig(**EVERY, r=2, decompose_factor=4, rank_dropout=0.1, rank_dropout_scale=True),
            None,
        ),
        "lokr large factor": (LoKrConfig(**EVERY, r=2, decompose_factor=20), None),
        "lokr patterns": (LoKrConfig(**EVERY, decompose_both=True, **patterns), None),
        "shira": (ShiraConfig(**EVERY, r=2, init_weights=False, random_seed=3), None),
        "shira saved": (ShiraConfig(**two, r=4, modules_to_save=["norm"]), None),
    }


KINDS = ("llama2", "qwen2", "gpt2")
# All options on Llama and GPT-2; where only q, k and v have biases, a row for each family.
ON_QWEN2 = {"adalora", "adalora bias", "ia3", "vera", "loha", "lokr", "shira", "ln tuning"}
ROWS = [(k, row) for k in KINDS for row in rows_of(k) if k != "qwen2" or row in ON_QWEN2]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    kind, row = request.param
    config, tweak = rows_of(kind)[row]
    return build(kind, tmp_path, config, base=NAMES[kind]["base"], tweak=tweak)


@pytest.mark.parametrize("case", ROWS, ids=[f"{k}-{r}" for k, r in ROWS], indirect=True)
def test_rows(case: Case):
    fused = case.fused()
    assert_forward_alike(case, fused)
    assert_weights_alike(case, fused)


def test_what_adalora_ignores_is_told(tmp_path: Path):
    config, _ = rows_of("llama2")["adalora ignores"]
    adapter = build("llama2", tmp_path, config).load()
    told = " ".join(adapter.facts["warnings"])
    assert all(name in told for name in ("use_rslora", "alpha_pattern", "lora_bias"))


def test_a_redrawn_projection_is_told(tmp_path: Path):
    config, _ = rows_of("llama2")["vera redrawn"]
    adapter = build("llama2", tmp_path, config).load()
    assert any("projection_prng_key" in text for text in adapter.facts["warnings"])
