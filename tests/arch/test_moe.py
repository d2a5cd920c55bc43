"""Models with experts: names and shapes as transformers saves them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from torch import cat, stack, zeros
from transformers import AutoModelForCausalLM

from exporter.arch.moe import MoeSpec
from exporter.arch.spec import load_spec
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.store.checkpoint import Checkpoint
from tests.tiny import EXPERTS, make_tiny, save_tiny


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    model = make_tiny(kind)
    return {**model.config.to_dict(), "architectures": [type(model).__name__], **changes}


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("tied", [False, True])
def test_tensors_are_those_that_transformers_saves(tmp_path: Path, kind: str, tied: bool):
    folder = save_tiny(kind, tmp_path / "m", tied=tied, sparsity=0.5)
    stored = {n: v.shape for n, v in load_file(folder / "model.safetensors").items()}
    checked = check_model(Checkpoint.open(folder))
    assert dict(checked.spec.tensors()) == stored
    assert checked.spec.tied is tied
    experts = [li for li in checked.spec.linears() if ".experts." in li.module]
    assert len(experts) == {"mixtral": 2, "qwen3_moe": 1}[kind] * 3 * 3
    assert {li.role for li in experts} == {"gate", "up", "down"}
    assert (
        len(checked.patterns)
        == len(checked.spec.linears())
        == len(experts)
        + {
            "mixtral": 8,
            "qwen3_moe": 11,
        }[kind]
    )
    routers = {f"{m}.weight" for m in checked.spec.routers().values()}
    assert {stored[r] for r in routers} == {(3, 64)}
    assert not any(stored[li.weight] == (3, 64) for li in checked.spec.linears())


@pytest.mark.parametrize("kind", EXPERTS)
def test_fused_parameters_are_those_that_transformers_loads(tmp_path: Path, kind: str):
    folder = save_tiny(kind, tmp_path / "m")
    spec = load_spec(config_of(kind))
    stored = load_torch(folder / "model.safetensors")
    held = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    fused = spec.fused_experts()
    assert [f.key for f in fused] == [n for n, p in held.items() if p.ndim == 3]
    for parameter in fused:
        want = stack([cat([stored[li.weight] for li in one]) for one in parameter.linears])
        assert held[parameter.key].equal(want)
        assert want.shape[1:] == (parameter.out_features, parameter.in_features)
    for memory, module in spec.routers().items():
        assert held[f"{memory}.weight"].equal(stored[f"{module}.weight"])


def test_where_experts_are():
    layers = {"num_hidden_layers": 6, "layer_types": None}
    for change, want in (
        ({"mlp_only_layers": None}, {0, 1, 2, 3, 4, 5}),
        ({"mlp_only_layers": [0, 5]}, {1, 2, 3, 4}),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 2}, {3, 5}),
    ):
        spec = load_spec(config_of("qwen3_moe", **layers, **change))
        assert isinstance(spec, MoeSpec) and spec.sparse == want
        fields = make_tiny("qwen3_moe", **layers, **change).named_parameters()
        assert {f.key for f in spec.fused_experts()} == {n for n, p in fields if p.ndim == 3}


def test_both_names_of_the_number_of_experts():
    """Configs of transformers 4 say num_experts, those of 5 num_local_experts."""
    config = config_of("qwen3_moe")
    config.pop("num_experts", None)
    new = load_spec({**config, "num_local_experts": 3})
    config.pop("num_local_experts")
    old = load_spec({**config, "num_experts": 3})
    assert new.tensors() == old.tensors()
    with pytest.raises(InputRefused, match="num_experts"):
        load_spec({**config, "num_experts": 3, "num_local_experts": 4})


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("mixtral", {"num_local_experts": 0}, "config-invalid"),
        ("mixtral", {"num_local_experts": 10**9}, "config-invalid"),
        ("mixtral", {"num_experts_per_tok": 4}, "config-invalid"),
        ("mixtral", {"architectures": ["MixtralModel"]}, "arch-unsupported"),
        ("qwen3_moe", {"moe_intermediate_size": "48"}, "config-invalid"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "config-invalid"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "config-invalid"),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "config-invalid"),
        ("qwen3_moe", {"model_type": "qwen2_moe"}, "arch-unsupported"),
    ],
)
def test_what_is_refused(kind: str, change: dict[str, Any], code: str):
    with pytest.raises(InputRefused) as caught:
        load_spec(config_of(kind, **change))
    assert caught.value.code == code


def test_experts_fused_in_the_file_are_refused(tmp_path: Path):
    """`save_pretrained` of transformers 5 takes them apart, as those of 4 never fused them."""
    folder = save_tiny("mixtral", tmp_path / "m")
    stored = load_torch(folder / "model.safetensors")
    plain = {n: v for n, v in stored.items() if ".experts." not in n}
    fused = {"model.layers.0.mlp.experts.down_proj": zeros(3, 64, 48)}
    save_file(plain | fused, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(folder))
    assert caught.value.code == "tensor-missing"
