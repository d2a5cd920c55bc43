"""LoRA beside the forward: fused experts, the writer, masked bases, every field of the config."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from exporter.adapters.fused_experts import ExpertParameter, read_expert_deltas
from exporter.adapters.lora_config import OPTIONS
from exporter.adapters.lora_write import write_lora
from exporter.adapters.peft_files import open_peft
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from tests.peft.matrix import Case, assert_forward_alike, build, in_float64, values
from tests.tiny import save_tiny

EXPERTS, HIDDEN, INNER = 3, 10, 7


def test_every_field_of_the_config_is_in_the_table():
    named = OPTIONS.read | OPTIONS.harmless | set(OPTIONS.refused)
    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    # Ours: SQFT's option, and digests of the base and of its masks.
    assert named - fields == {"sparse_adapter", "base_sha256", "mask_sha256"}
    assert fields <= named
    assert not (OPTIONS.read | OPTIONS.harmless) & set(OPTIONS.refused)


def test_what_peft_saves_of_untouched_options_is_read(tmp_path: Path):
    """No field's default is taken for a switch that is on."""
    case = build("llama2", tmp_path, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    assert {f.name for f in dataclasses.fields(LoraConfig)} - config.keys() <= {"runtime_config"}
    assert case.load().facts["warnings"] == []


class Experts(torch.nn.Module):
    """Two fused parameters, as transformers' MoE layers hold them."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        shapes = [(2 * INNER, HIDDEN), (HIDDEN, INNER)]
        up, down = ((s[1], s[0]) if transposed else s for s in shapes)
        self.gate_up_proj = torch.nn.Parameter(torch.randn(EXPERTS, *up))
        self.down_proj = torch.nn.Parameter(torch.randn(EXPERTS, *down))

    def forward(self, x: Any) -> Any:
        return x, self.gate_up_proj, self.down_proj


class Holder(torch.nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.experts = Experts(transposed)

    def forward(self, x: Any) -> Any:
        return self.experts(x)


@pytest.mark.parametrize("transposed", [False, True])
def test_fused_experts(tmp_path: Path, transposed: bool):
    """What the module's own forward sees of its parameters, less what it holds."""
    model = Holder(transposed)
    plain = [p.detach().clone() for p in (model.experts.gate_up_proj, model.experts.down_proj)]
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=False,
    )
    peft: Any = get_peft_model(model, config)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.save_pretrained(tmp_path)
        seen = peft(torch.zeros(1))[1:]
    parameters = [
        ExpertParameter("gate_up_proj", EXPERTS, 2 * INNER, HIDDEN, rank=2, scale=1.5),
        ExpertParameter("down_proj", EXPERTS, HIDDEN, INNER, rank=2, scale=1.5),
    ]
    opened = open_peft(tmp_path)
    found = read_expert_deltas(opened, "experts", parameters)
    assert 2 * len(found) == len(opened.names)
    for parameter, before, after in zip(parameters, plain, seen, strict=True):
        moved = (after - before).numpy()
        for expert, delta in enumerate(found[parameter.name].each):
            want = moved[expert].T if transposed else moved[expert]
            assert np.abs(delta.rows(0, delta.shape[0]) - want).max() <= 1e-5


def test_fused_experts_of_another_shape(tmp_path: Path):
    write_lora(tmp_path, {"experts": (np.ones((4, 5), "f4"), np.ones((6, 4), "f4"))}, alpha=1)
    opened = open_peft(tmp_path)
    right = ExpertParameter("w", 2, 6, 5, rank=2, scale=1.0)
    found = read_expert_deltas(opened, "experts", [right])["w"]
    assert len(found.each) == 2 and found.moves
    for change in ({"experts": 3}, {"rank": 1}, {"out_features": 5}, {"in_features": 6}):
        with pytest.raises(InputRefused) as caught:
            read_expert_deltas(opened, "experts", [dataclasses.replace(right, **change)])
        assert caught.value.code == "adapter-shape"
    with pytest.raises(InputRefused) as caught:
        read_expert_deltas(opened, "experts", [dataclasses.replace(right, scale=1e39)])
    assert caught.value.code == "value-overflow"
    with pytest.raises(InputRefused) as caught:
        read_expert_deltas(opened, "other", [right])
    assert caught.value.code == "adapter-tensor-missing"


def test_experts_of_a_config_are_refused(tmp_path: Path):
    case = build("llama2", tmp_path, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    path = case.adapter / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_parameters": ["mlp.experts.gate_up_proj"]}
    path.write_text(json.dumps(config))
    with pytest.raises(InputRefused) as caught:
        case.load()
    assert caught.value.code == "adapter-option"
    assert "experts" in caught.value.found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama2", tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_what_we_write(tmp_path: Path, base: Path, dora: bool):
    """Ranks and alphas that differ from module to module."""
    checked = check_model(Checkpoint.open(base))
    rng = np.random.default_rng(0)
    factors: dict[str, Any] = {}
    for number, linear in enumerate(checked.spec.linears()):
        rank = 2 + number % 3
        shapes = (rank, linear.in_features), (linear.out_features, rank)
        factors[linear.module] = tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)
    alphas = {m: 1.0 + (n % 2) / 2 for n, m in enumerate(factors)}
    magnitudes = {m: rng.random(len(b)).astype(np.float32) + 1 for m, (_, b) in factors.items()}
    write_lora(
        tmp_path, factors, alpha=alphas, rslora=True, magnitudes=magnitudes if dora else None
    )
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Found missing adapter keys")
        peft = PeftModel.from_pretrained(model, str(tmp_path))
    assert_forward_alike(Case(checked, tmp_path, in_float64(peft)))


def test_writing_twice_gives_the_same_bytes(tmp_path: Path):
    pair = {"model.layers.0.mlp.up_proj": (np.ones((2, 5), "f4"), np.ones((6, 2), "f4"))}
    for folder in "ab":
        write_lora(tmp_path / folder, pair, alpha=4, sparse=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["sparse_adapter"] is True


@pytest.mark.parametrize(
    "change, code",
    [
        ({"alpha": {"m": 1.0, "n": 1.0}}, "adapter-invalid"),
        ({"magnitudes": {}}, "adapter-invalid"),
        ({"magnitudes": {"m": np.ones(5, "f4")}}, "adapter-shape"),
        ({"factors": {}}, "adapter-empty"),
        ({"factors": {"m": (np.ones((2, 5), "f4"), np.ones((6, 3), "f4"))}}, "adapter-shape"),
    ],
)
def test_what_is_not_written(tmp_path: Path, change: dict[str, Any], code: str):
    pair = {"m": (np.ones((2, 5), "f4"), np.ones((6, 2), "f4"))}
    with pytest.raises(InputRefused) as caught:
        write_lora(tmp_path / "a", **{"factors": pair, "alpha": 1.0, **change})
    assert caught.value.code == code
    assert not (tmp_path / "a").exists()


def test_dora_under_a_mask_scales_what_is_left(tmp_path: Path):
    """Each row of the merged weight has the trained length, and its zeros are the base's."""
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    case = build("llama2", tmp_path, config, base={"sparsity": 0.7})
    module = "model.layers.0.self_attn.q_proj"
    layer = case.peft.get_base_model().get_submodule(module)
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().numpy()
    before = case.checked.checkpoint.rows(f"{module}.weight")
    merged = values(case.fused("mask"))[f"{module}.weight"]
    assert not merged[before == 0].any()
    lengths = np.linalg.norm(merged.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, np.abs(magnitude), rtol=1e-6)
    # Given up, the mask has no say in the norm: PEFT's own forward.
    assert_forward_alike(case, case.fused("densify"))
