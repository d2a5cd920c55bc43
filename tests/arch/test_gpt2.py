"""GPT-2: names and shapes against transformers' class, old checkpoints, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers.pytorch_utils import Conv1D

from exporter.arch.gpt2 import Gpt2Spec
from exporter.arch.model_spec import stored_shapes
from exporter.arch.spec import load_spec
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.planning import header_model
from exporter.request import ExportRequest
from exporter.store.checkpoint import Checkpoint
from tests.tiny import make_tiny, save_tiny


def config_of(**changes: Any) -> dict[str, Any]:
    model = make_tiny("gpt2", **changes)
    return {**model.config.to_dict(), "architectures": ["GPT2LMHeadModel"]}


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"n_inner": None}, {"n_layer": 3}])
def test_tensors_and_linears_are_those_of_transformers(changes: dict[str, Any]) -> None:
    model = make_tiny("gpt2", **changes)
    spec = load_spec(config_of(**changes))
    assert isinstance(spec, Gpt2Spec)
    want = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert stored_shapes(spec) == want
    modules = {n for n, m in model.named_modules() if isinstance(m, Conv1D)}
    assert {linear.module for linear in spec.linears()} == modules
    for linear in spec.linears():
        assert linear.transposed and linear.bias
        assert (linear.in_features, linear.out_features) == want[linear.weight]
        assert spec.tensors()[linear.weight] == (linear.out_features, linear.in_features)
    assert spec.tied == (changes.get("tied") is not False)
    assert (spec.family, spec.heads, spec.kv_heads, spec.head_dim) == ("gpt2", 4, 4, 16)


def test_defaults_are_transformers() -> None:
    from transformers import GPT2Config

    spec, want = load_spec({"model_type": "gpt2"}), GPT2Config()
    assert (spec.vocab, spec.hidden, spec.layers) == (want.vocab_size, want.n_embd, want.n_layer)
    assert (spec.heads, spec.max_positions, spec.tied) == (want.n_head, want.n_positions, True)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"add_cross_attention": True}, "arch-unsupported"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "arch-unsupported"),
        ({"quantization_config": {"bits": 4}}, "model-quantised"),
        ({"n_head": 5}, "config-invalid"),
        ({"n_embd": "64"}, "config-invalid"),
        ({"n_layer": 0}, "config-invalid"),
        ({"n_inner": 0}, "config-invalid"),
        ({"n_positions": True}, "config-invalid"),
        ({"tie_word_embeddings": 1}, "config-invalid"),
    ],
)
def test_what_is_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(InputRefused) as caught:
        load_spec({**config_of(), **change})
    assert caught.value.code == code


def as_old(folder: Path, mask: Any, **extra: Any) -> dict[str, Any]:
    """Rewrite a folder as GPT-2's own checkpoints are: no prefix, the causal mask as a buffer."""
    tensors = load_file(folder / "model.safetensors")
    bare = {n.removeprefix("transformer."): v for n, v in tensors.items()}
    for layer in range(2):
        bare[f"h.{layer}.attn.bias"] = mask
        bare[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    save_file({**bare, **extra}, folder / "model.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_old_checkpoint_is_the_same_model(dtype: str, tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "m", sparsity=0.5)
    plain = check_model(Checkpoint.open(folder))
    rows = {name: plain.checkpoint.rows(name) for name in plain.spec.tensors()}
    as_old(folder, np.tril(np.ones((1, 1, 8, 8))).astype(dtype))
    old = check_model(Checkpoint.open(folder))
    assert old.patterns == plain.patterns and old.spec == plain.spec
    assert sorted(old.dropped) == [
        f"transformer.h.{i}.attn.{leaf}" for i in (0, 1) for leaf in ("bias", "masked_bias")
    ]
    for name, values in rows.items():
        assert np.array_equal(old.checkpoint.rows(name), values)
    request = ExportRequest(model=folder, target="hf", output=tmp_path / "out")
    assert set(header_model(request).tensors) == set(rows)


def test_old_checkpoint_still_has_every_tensor_accounted_for(tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "m")
    mask = np.ones((1, 1, 8, 8), np.float32)
    as_old(folder, mask, stray=np.ones(3, np.float32))
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(folder))
    assert (caught.value.code, caught.value.tensor) == ("tensor-unexpected", "stray")
    tensors = load_file(folder / "model.safetensors")
    del tensors["stray"], tensors["h.1.mlp.c_fc.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(folder))
    assert caught.value.code == "tensor-missing"
    assert caught.value.tensor == "transformer.h.1.mlp.c_fc.bias"


def test_llama_without_its_prefix_stays_refused(tmp_path: Path) -> None:
    folder = save_tiny("smollm2", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    bare = {n.removeprefix("model."): v for n, v in tensors.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(folder))
    assert caught.value.code == "tensor-missing"


def test_a_swapped_matrix_is_a_wrong_shape(tmp_path: Path) -> None:
    """`[out, in]` in the file is what other families store, and no GPT-2."""
    folder = save_tiny("gpt2", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputRefused) as caught:
        check_model(Checkpoint.open(folder))
    assert (caught.value.code, caught.value.tensor) == ("tensor-shape", name)
    assert "[64, 160]" in str(caught.value.expected)
