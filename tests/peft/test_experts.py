"""LoRA on experts that transformers holds in 3-D parameters, against PEFT's unmerged forward."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.check.model import check_model
from exporter.convert.base import Source
from exporter.convert.lora import ToLora
from exporter.errors import InputRefused, UsageError
from exporter.model import FusedModel
from exporter.store.checkpoint import Checkpoint
from tests.peft.matrix import RELATIVE, Case, build, in_float64, logits
from tests.tiny import EXPERTS, save_tiny

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = ["q_proj", "o_proj"]
ROWS: dict[str, dict[str, Any]] = {
    "attention alone": {"target_modules": ATTENTION},
    "experts and attention": {"target_modules": ATTENTION, "target_parameters": BOTH},
    "experts alone": {"target_modules": [], "target_parameters": BOTH},
    "down alone": {"target_modules": ["v_proj"], "target_parameters": ["experts.down_proj"]},
    "gate and up alone": {"target_modules": [], "target_parameters": ["gate_up_proj"]},
    "router": {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
    "every linear": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": ATTENTION,
        "target_parameters": [*BOTH, "gate.weight"],
        "use_rslora": True,
        "rank_pattern": {"experts.gate_up_proj": 3, "gate.weight": 2, "q_proj": 5},
        "alpha_pattern": {r"0\.mlp\.experts\.down_proj": 11, "gate.weight": 1.5},
    },
    "one layer": {"target_modules": [], "target_parameters": [f"layers.0.{n}" for n in BOTH]},
    "dropout in attention": {"target_modules": ATTENTION, "lora_dropout": 0.2},
    "dora in attention": {"target_modules": ATTENTION, "use_dora": True},
    "saved head": {
        "target_modules": [],
        "target_parameters": BOTH,
        "modules_to_save": ["lm_head"],
    },
}


def lora(**options: Any) -> LoraConfig:
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
    return LoraConfig(**{**fields, **options})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {kind: save_tiny(kind, place / kind) for kind in EXPERTS}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sparse")
    return {kind: save_tiny(kind, place / kind, sparsity=0.6) for kind in EXPERTS}


def saved(case: Case, fused: FusedModel, folder: Path) -> Path:
    """Our merge as a checkpoint, float32."""
    folder.mkdir()
    tensors = {n: np.ascontiguousarray(t.rows(0, t.shape[0])) for n, t in fused.tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((case.base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": fused.tied}))
    return folder


def load(folder: Path) -> Any:
    return in_float64(AutoModelForCausalLM.from_pretrained(folder))


def assert_forward_alike(case: Case, fused: FusedModel, folder: Path) -> None:
    want = logits(case.peft)
    assert np.abs(want - logits(load(case.base))).max() > 1e-2 * np.abs(want).max()
    found = logits(load(saved(case, fused, folder)))
    assert np.abs(found - want).max() <= RELATIVE * np.abs(want).max()


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("row", ROWS)
def test_rows(tmp_path: Path, bases: dict[str, Path], kind: str, row: str):
    case = build(kind, tmp_path, lora(**ROWS[row]), base=bases[kind])
    adapter = case.load()
    assert adapter.tensors_used == len(load_file(case.adapter / "adapter_model.safetensors"))
    assert_forward_alike(case, case.fused(), tmp_path / "merged")


@pytest.mark.parametrize("kind", EXPERTS)
def test_under_a_mask(tmp_path: Path, sparse: dict[str, Path], kind: str):
    """Refused without a policy; with `mask` the zeros stay and the rest is what PEFT merges."""
    config = lora(target_modules=ATTENTION, target_parameters=BOTH)
    case = build(kind, tmp_path, config, base=sparse[kind])
    with pytest.raises(UsageError) as caught:
        case.fused()
    assert caught.value.code == "merge-policy-needed"
    fused = case.fused("mask")
    full = case.fused("densify").tensors
    changed = 0
    for linear in case.checked.spec.linears():
        before = case.checked.checkpoint.rows(linear.weight)
        after = fused.tensors[linear.weight].rows(0, linear.out_features)
        outside = after[before == 0]
        assert outside.size and not outside.view(np.uint32).any(), linear.module
        whole = full[linear.weight].rows(0, linear.out_features)
        assert np.array_equal(after[before != 0], whole[before != 0])
        changed += int(".experts." in linear.module and not np.array_equal(after, before))
    assert changed == sum(".experts." in li.module for li in case.checked.spec.linears())
    assert_forward_alike(case, case.fused("densify"), tmp_path / "merged")


OLD = {
    "mixtral": ["w1", "w3", "w2"],
    "qwen3_moe": ["gate_proj", "up_proj", "down_proj"],
}


def old_adapter(kind: str, base: Path, folder: Path, drop: str = "") -> Path:
    """As PEFT saved it over transformers 4, where each linear of an expert is a module."""
    spec = check_model(Checkpoint.open(base)).spec
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for linear in spec.linears():
        if ".experts." not in linear.module and linear.role != "q":
            continue
        name = f"base_model.model.{linear.module}"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((4, linear.in_features))
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((linear.out_features, 4))
    left = {n: v for n, v in tensors.items() if not drop or drop not in n}
    tensors = {n: v.astype(np.float32) * 0.1 for n, v in left.items()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = ["q_proj", *OLD[kind]]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6}
    config |= {"target_modules": targets, "layers_to_transform": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", EXPERTS)
def test_adapters_of_transformers_4(tmp_path: Path, kind: str):
    """One pair of factors for each linear of each expert: PEFT fuses them when it loads."""
    base = save_tiny(kind, tmp_path / "base", mlp_only_layers=[])
    folder = old_adapter(kind, base, tmp_path / "adapter")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        peft = in_float64(PeftModel.from_pretrained(model, str(folder)))
    case = Case(check_model(Checkpoint.open(base)), folder, peft)
    assert_forward_alike(case, case.fused(), tmp_path / "merged")


@pytest.mark.parametrize("drop", ["experts", "experts.1.", "layers.0.mlp"])
def test_an_expert_without_its_factors(tmp_path: Path, bases: dict[str, Path], drop: str):
    folder = old_adapter("qwen3_moe", bases["qwen3_moe"], tmp_path / "adapter", drop)
    case = Case(check_model(Checkpoint.open(bases["qwen3_moe"])), folder, None)
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == "adapter-tensor-missing"


def rewrite(case: Case, change: Any, **config: Any) -> None:
    path = case.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    text = case.adapter / "adapter_config.json"
    text.write_text(json.dumps({**json.loads(text.read_text()), **config}))


NAME = "base_model.model.model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("change", "config", "code"),
    [
        (lambda t: t.pop(f"{NAME}.lora_A.weight"), {}, "adapter-tensor-missing"),
        (lambda t: t.pop(f"{NAME}.base_layer.lora_B.weight"), {}, "adapter-tensor-missing"),
        (lambda t: None, {"target_parameters": BOTH[:1]}, "adapter-tensor-unused"),
        (lambda t: None, {"target_parameters": []}, "adapter-tensor-unused"),
        (lambda t: None, {"target_parameters": [*BOTH, "w9"]}, "adapter-option"),
        (lambda t: None, {"target_parameters": [*BOTH, "w1.weight"]}, "adapter-option"),
        (lambda t: None, {"r": 2}, "adapter-shape"),
        (lambda t: None, {"sparse_adapter": True}, "adapter-option"),
        (lambda t: None, {"target_modules": ["q_proj", "w2"]}, "adapter-tensor-missing"),
        (
            lambda t: t.update({f"{NAME}.lora_B.bias": np.ones(64, "f4")}),
            {},
            "adapter-tensor-unused",
        ),
        (
            lambda t: t.update({f"{NAME}.lora_A.weight": np.full((12, 48), np.nan, "f4")}),
            {},
            "value-not-finite",
        ),
    ],
)
def test_what_is_refused(
    tmp_path: Path, bases: dict[str, Path], change: Any, config: dict[str, Any], code: str
):
    options = lora(target_modules=["q_proj"], target_parameters=BOTH)
    case = build("mixtral", tmp_path, options, base=bases["mixtral"])
    rewrite(case, change, **config)
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == code


def test_no_lora_is_written_of_experts(tmp_path: Path, bases: dict[str, Path]):
    """PEFT would give all experts one rank and one scale."""
    base = bases["mixtral"]
    folder = old_adapter("mixtral", base, tmp_path / "adapter")
    case = Case(check_model(Checkpoint.open(base)), folder, None)
    with pytest.raises(InputRefused) as caught:
        ToLora().write(Source(case.load(), folder), case.checked.spec, tmp_path / "out")
    assert caught.value.code == "conversion-impossible"
    assert ".experts." in str(caught.value.tensor)


def test_factors_of_zero_are_an_empty_adapter(tmp_path: Path, bases: dict[str, Path]):
    config = lora(target_modules=[], target_parameters=BOTH)
    case = build("mixtral", tmp_path, config, base=bases["mixtral"])
    rewrite(case, lambda t: t.update({n: v * 0 for n, v in t.items() if "lora_B" in n}))
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == "adapter-empty"
