"""An engine does not start on a broken folder, and says which tensor is at fault.

What else can be broken is tested on the classes that refuse it: test_shards, test_folder,
test_gather, and tests/packed for the layout itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny
from tests.vllm.conftest import RunInVllm
from tests.vllm.packing import How, linears, nm, pack_pair

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
PROGRAM = Path(__file__).parent / "programs" / "tokens.py"
Q, DOWN = linears(0)[0], linears(0)[6]


def _offsets(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    del config
    tensors[f"{Q}.offsets"][1, 1] += 1


def _bits(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    del config
    tensors[f"{DOWN}.mask"][0, 0, 5] = 255


def _norm(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    del config
    del tensors["model.layers.1.post_attention_layernorm.weight"]


def _version(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    del tensors
    config["quantization_config"]["version"] = 2


FAULTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "wrong offsets": (_offsets, "packed-invalid", f"{Q}.offsets"),
    "mask with too many bits": (_bits, "packed-invalid", f"{DOWN}.mask"),
    "missing norm": (_norm, "tensor-missing", "layers.1.post_attention_layernorm.weight"),
    "unknown version": (_version, "packed-version", "version 2"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory, run_in_vllm: RunInVllm) -> dict[str, Any]:
    where = tmp_path_factory.mktemp("broken")
    sizes: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4}
    model = save_tiny("llama2", where / "model", dtype="bfloat16", **sizes)
    sound, _ = pack_pair(model, where, {Q: How(), DOWN: nm(2, 4)})
    for name, (fault, _, _) in FAULTS.items():
        folder = shutil.copytree(sound, where / name)
        tensors = load_file(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        fault(tensors, config)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
    jobs = [{"folder": str(where / name)} for name in FAULTS]
    return dict(zip(FAULTS, run_in_vllm(PROGRAM, json.dumps(jobs), timeout=500), strict=True))


@pytest.mark.parametrize("name", FAULTS)
def test_the_engine_does_not_start(name: str, refusals: dict[str, Any]) -> None:
    _, code, tensor = FAULTS[name]
    told = refusals[name]
    assert isinstance(told, str), f"it started and made {told}"
    assert code in told and tensor in told


def test_without_the_plugin_vllm_says_what_it_does_not_know(
    tmp_path: Path, run_in_vllm: RunInVllm
) -> None:
    model = save_tiny("llama2", tmp_path / "model", dtype="bfloat16")
    packed, _ = pack_pair(model, tmp_path, {Q: How()})
    jobs = json.dumps([{"folder": str(packed)}])
    (told,) = run_in_vllm(PROGRAM, jobs, env={"VLLM_PLUGINS": ""})
    assert "Unknown quantization method: sparse-export" in told
