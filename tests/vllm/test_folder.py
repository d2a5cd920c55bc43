"""Headers of a packed folder are checked before vLLM loads it, names outside our layers too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.packed.spec import PackedModel
from backends.vllm.plugin.folder import check_folder
from exporter.errors import InputRefused
from tests.tiny import save_tiny
from tests.vllm.packing import How, linears, nm, pack_pair

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("folder")
    model = save_tiny("llama2", where / "m", dtype="bfloat16", bias=True)
    how = {name: nm(2, 4) for name in linears(0)} | {
        name: How(values="int8") for name in linears(1)
    }
    how["model.layers.1.mlp.up_proj"] = How(values="int4", group=128)
    return pack_pair(model, where, how)[0]


def refused(folder: Path) -> InputRefused:
    with pytest.raises(InputRefused) as refusal:
        check(folder)
    return refusal.value


def check(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    check_folder(folder, PackedModel.parse(config["quantization_config"]).layers)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_sound_folder(sound: Path) -> None:
    check(sound)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "llama3"])
def test_other_families(kind: str, tmp_path: Path) -> None:
    """With experts, and with a tied head."""
    model = save_tiny(kind, tmp_path / "m", dtype="bfloat16")
    experts = {
        "mixtral": "model.layers.0.block_sparse_moe.experts.1.w1",
        "qwen3_moe": "model.layers.0.mlp.experts.1.gate_proj",
    }
    check(pack_pair(model, tmp_path, {experts.get(kind, Q): How()})[0])


@pytest.mark.parametrize(
    "name",
    [
        f"{Q}.mask",
        f"{Q}.bias",
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.mlp.down_proj.scales",
        "model.layers.1.mlp.down_proj.starts",
    ],
)
def test_a_missing_tensor(name: str, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "f")
    change(folder, lambda tensors: tensors.pop(name))
    refusal = refused(folder)
    assert (refusal.code, refusal.tensor) == ("tensor-missing", name)


@pytest.mark.parametrize("name", [f"{Q}.weight", f"{Q}.scales", "model.layers.2.mlp.up_proj.mask"])
def test_an_unexpected_tensor(name: str, sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "f")
    change(folder, lambda tensors: tensors.update({name: torch.zeros(4)}))
    refusal = refused(folder)
    assert (refusal.code, refusal.tensor) == ("tensor-unexpected", name)


@pytest.mark.parametrize(
    ("name", "edit", "code"),
    [
        (f"{Q}.values", lambda t: t[:-1].contiguous(), "packed-invalid"),
        (f"{Q}.values", lambda t: t.half(), "packed-invalid"),
        ("model.layers.1.mlp.up_proj.values", lambda t: t[None], "packed-invalid"),
        ("model.layers.1.self_attn.v_proj.values", lambda t: t[:-1], "packed-invalid"),
        ("model.norm.weight", lambda t: t[:-1], "tensor-shape"),
    ],
)  # fmt: skip
def test_types_and_shapes(
    name: str, edit: Callable[[Any], Any], code: str, sound: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sound, tmp_path / "f")
    change(folder, lambda tensors: tensors.update({name: edit(tensors[name])}))
    refusal = refused(folder)
    assert (refusal.code, refusal.tensor) == (code, name)


def test_a_layer_of_another_size_than_the_config_says(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "f")
    config = json.loads((folder / "config.json").read_text())
    config["num_key_value_heads"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert refused(folder).code == "tensor-shape"


def test_a_file_that_is_cut_short(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "f")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert refused(folder).code in ("file-truncated", "header-range")


def test_a_family_that_only_vllm_knows(sound: Path, tmp_path: Path) -> None:
    """Its packed linears are checked; of the others we know nothing."""
    folder = shutil.copytree(sound, tmp_path / "f")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "novel", "architectures": ["NovelForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    check(folder)
    change(folder, lambda tensors: tensors.pop(f"{Q}.mask"))
    assert refused(folder).tensor == f"{Q}.mask"
