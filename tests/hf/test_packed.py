"""Packed folders in plain transformers: the model is that of the dense folder, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backends.hf.session import open_session
from tests.tiny import CONV1D, KINDS, save_tiny
from tests.vllm.packing import How, nm, pack_pair

F32, BF16 = torch.float32, torch.bfloat16
TOKENS = [1, 17, 5, 99, 200, 3, 42]
# Every kind of storage and every type of values.
HOWS = (
    How(),
    nm(2, 4),
    How("ragged", "int4", group=128),
    nm(2, 8, "int8"),
    How("dense", "int8"),
    nm(1, 4, "fp16"),
    How("ragged", "fp8"),
    nm(4, 8, "int4", 64),
    How("ragged", "fp32"),
    How("dense"),
)


def linears(model: Path) -> list[str]:
    names = sorted(load_file(model / "model.safetensors"))
    wanted = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")
    return [name.removesuffix(".weight") for name in names if name.endswith(wanted)]


def every_how(model: Path) -> dict[str, How]:
    return {module: HOWS[i % len(HOWS)] for i, module in enumerate(linears(model))}


def pair(kind: str, where: Path, dtype: str = "float32", **more: Any) -> tuple[Path, Path]:
    model = save_tiny(kind, where / "model", dtype=dtype, **more)
    return pack_pair(model, where, every_how(model), exact=F32)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits


def assert_same_weights(got: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    wrong = [n for n, w in want.items() if w.dtype != got[n].dtype or not torch.equal(w, got[n])]
    assert wrong == []


@pytest.mark.parametrize("kind", [*KINDS, "mixtral", "qwen3_moe"])
def test_every_family(kind: str, tmp_path: Path) -> None:
    packed, dense = pair(kind, tmp_path)
    got, want = load(packed, dtype=F32), load(dense, dtype=F32)
    assert_same_weights(got.state_dict(), want.state_dict())
    assert torch.equal(logits(got), logits(want))
    assert torch.isfinite(logits(got)).all()
    assert (got.lm_head.weight is got.model.embed_tokens.weight) == got.config.tie_word_embeddings


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("asked", [F32, BF16, torch.float16, "auto"])
@pytest.mark.parametrize("kind", ["smollm2", "mixtral"])
def test_types(kind: str, asked: Any, stored: str, tmp_path: Path) -> None:
    packed, dense = pair(kind, tmp_path, stored)
    got, want = load(packed, dtype=asked), load(dense, dtype=asked)
    assert_same_weights(got.state_dict(), want.state_dict())
    main = getattr(torch, stored) if asked == "auto" else asked
    assert {t.dtype for t in got.state_dict().values()} == {main} and got.config.dtype == main


def test_shards_and_async_load_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, dense = pair("qwen2", tmp_path)
    tensors = load_file(packed / "model.safetensors")
    names = sorted(tensors)
    (packed / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, held in shards.items():  # the parts of a linear lie in several files
        save_file({n: tensors[n] for n in held}, packed / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, held in shards.items() for n in held}}
    (packed / "model.safetensors.index.json").write_text(json.dumps(index))
    want = load(dense, dtype=F32).state_dict()
    assert_same_weights(load(packed, dtype=F32).state_dict(), want)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    assert_same_weights(load(packed, dtype=F32).state_dict(), want)


@pytest.mark.parametrize("kind", ["llama3", "mixtral"])
def test_saved_again_it_is_a_plain_folder(kind: str, tmp_path: Path) -> None:
    packed, dense = pair(kind, tmp_path)
    model = load(packed, dtype=F32)
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    got = load_file(tmp_path / "saved" / "model.safetensors")
    assert_same_weights(
        got, {n: t.to(F32) for n, t in load_file(dense / "model.safetensors").items()}
    )
    assert torch.equal(logits(load(tmp_path / "saved", dtype=F32)), logits(model))


def test_generates_and_trains_like_any_other(tmp_path: Path) -> None:
    packed, dense = pair("smollm2", tmp_path)
    got, want = load(packed, dtype=F32), load(dense, dtype=F32)
    told: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    prompt = torch.tensor([TOKENS])
    assert torch.equal(got.generate(prompt, **told), want.generate(prompt, **told))
    got(prompt, labels=prompt).loss.backward()
    assert got.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_transposed_linears(tmp_path: Path) -> None:
    """GPT-2 holds `[in, out]`; what is packed is `[out, in]`, as everywhere."""
    model = save_tiny(CONV1D, tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    names = [n for n in tensors if ".c_" in n and n.endswith(".weight")]
    turned = {n: t.t().contiguous() if n in names else t for n, t in tensors.items()}
    save_file(turned, model / "model.safetensors", {"format": "pt"})
    how = {n.removesuffix(".weight"): HOWS[i % 4] for i, n in enumerate(sorted(names))}
    packed, dense = pack_pair(model, tmp_path, how, exact=F32)
    want = load_file(dense / "model.safetensors")
    back = {n: t.t().contiguous() if n in names else t for n, t in want.items()}
    save_file(back, dense / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(load(packed, dtype=F32)), logits(load(dense, dtype=F32)))


def test_the_session_of_hf_runs_it(tmp_path: Path) -> None:
    packed, dense = pair("smollm2", tmp_path, "bfloat16")
    sessions = [open_session(folder) for folder in (packed, dense)]
    got, want = (session.prefill(TOKENS) for session in sessions)
    for session in sessions:
        session.close()
    assert got.shape[0] == len(TOKENS) and np.array_equal(got, want)
