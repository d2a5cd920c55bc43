"""What lowering writes: valid, small, the same every time, with the zeros of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from backends.companions import clean_config, config_bytes, write_companions
from backends.decoder_graph.layout import data_layout
from backends.decoder_graph.lower import lower_decoder, plan_decoder
from backends.decoder_graph.options import GraphOptions
from backends.decoder_graph.read_back import read_back, stored_twice
from backends.decoder_graph.variants import read_graph, static_variant
from exporter.errors import InputRefused, UsageError
from exporter.model import FusedModel, FusedTensor, LowRank
from tests.decoder_graph.lowered import lowered
from tests.fused import fused_from
from tests.tiny import KINDS, make_tiny, save_tokenizer

FORBIDDEN = {"Where", "Einsum", "LayerNormalization", "Reciprocal", "Pow", "Erf"}


@pytest.mark.parametrize("io", ["deepsparse", "optimum"])
@pytest.mark.parametrize("kind", KINDS)
def test_checker_and_op_set(kind: str, io: str, tmp_path: Path):
    _, folder = lowered(tmp_path, kind, io=io, bias=True)
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = read_graph(folder / "model.onnx")
    assert model.ir_version == 8 and [o.version for o in model.opset_import] == [14]
    assert not {node.op_type for node in model.graph.node} & FORBIDDEN
    assert {o.domain for o in model.opset_import} == {""}


def test_interface_of_deepsparse(tmp_path: Path):
    _, folder = lowered(tmp_path, "smollm2")
    graph = read_graph(folder / "model.onnx").graph
    inputs = {v.name: _dims(v) for v in graph.input}
    assert list(inputs)[:4] == ["input_ids", "attention_mask", "positions", "causal_mask"]
    assert inputs["causal_mask"] == [1, 1, "tokens", "sequence"]
    assert inputs["past_key_values.0.key"] == [1, 9, "past", 8]
    outputs = [v.name for v in graph.output]
    past = [name for name in inputs if name.startswith("past")]
    assert outputs[0] == "logits"
    assert outputs[1:] == [name.replace("past_key_values", "present") for name in past]


def test_interface_of_optimum(tmp_path: Path):
    _, folder = lowered(tmp_path, "smollm2", io="optimum")
    graph = read_graph(folder / "model.onnx").graph
    inputs = {v.name: _dims(v) for v in graph.input}
    assert list(inputs)[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert inputs["input_ids"] == ["batch", "tokens"]
    assert inputs["past_key_values.1.value"] == ["batch", 3, "past", 8]


def test_only_a_transpose_stands_between_cache_and_matmul(tmp_path: Path):
    """What DeepSparse's internal cache needs; see GraphOptions."""
    _, folder = lowered(tmp_path, "smollm2")
    graph = read_graph(folder / "model.onnx").graph
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    assert readers["present.0.key"] == ["Transpose"]
    assert readers["present.0.value"] == ["MatMul"]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_values_are_those_of_the_weights(kind: str, tmp_path: Path):
    model, folder = lowered(tmp_path, kind, sparsity=0.7)
    values = {name: p.detach().numpy() for name, p in model.named_parameters()}
    stored = {t.name: t for t in read_back(folder)}
    assert set(stored) == set(values)
    for name, tensor in stored.items():
        assert tensor.shape == values[name].shape
        half = tensor.shape[0] // 2
        again = np.concatenate([tensor.rows(0, half), tensor.rows(half, tensor.shape[0])])
        assert again.tobytes() == values[name].tobytes()
    some = stored["model.layers.0.mlp.up_proj.weight"]
    assert np.count_nonzero(some.rows(0, some.shape[0]) == 0) == round(0.7 * np.prod(some.shape))


def test_linears_lie_transposed_in_the_file(tmp_path: Path):
    """The form that engines want is in the bytes, not only in what the reader tells."""
    model, folder = lowered(tmp_path, "llama2")
    graph = onnx.load(str(folder / "model.onnx")).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    weight = model.model.layers[1].mlp.gate_proj.weight.detach().numpy()
    assert np.array_equal(stored["model.layers.1.mlp.gate_proj.weight"], weight.T)
    assert np.array_equal(stored["lm_head.weight"], model.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("io", ["deepsparse", "optimum"])
def test_artefact_is_hardly_larger_than_its_tensors(io: str, tmp_path: Path):
    _, folder = lowered(tmp_path, "llama3", io=io, hidden_size=256, intermediate_size=512)
    tensors = list(read_back(folder))
    size = sum(p.stat().st_size for p in folder.iterdir())
    assert size <= 1.02 * sum(t.nbytes for t in tensors)
    assert stored_twice(tensors) == 0


def test_a_copy_under_another_name_is_counted(tmp_path: Path):
    import torch

    model = make_tiny("llama2", tied=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        for layer in model.model.layers:  # matrices of zeros alone are equal, and no copy
            layer.mlp.up_proj.weight.zero_()
            layer.input_layernorm.weight.fill_(1.0)
    lower_decoder(fused_from(model), tmp_path, GraphOptions())
    assert stored_twice(read_back(tmp_path)) == model.lm_head.weight.numel() * 4


@pytest.mark.parametrize("io", ["deepsparse", "optimum"])
def test_same_model_same_bytes(io: Any, tmp_path: Path):
    for name in ("a", "b"):
        lowered(tmp_path / name, "qwen3", io=io, seed=5)
    for file in ("model.onnx", "model.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert b"/tmp" not in (tmp_path / "a" / "model.onnx").read_bytes()


def test_block_size_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lowered(tmp_path / "a", "qwen2")
    monkeypatch.setattr("backends.decoder_graph.layout.BLOCK_BYTES", 1000)
    lowered(tmp_path / "b", "qwen2")
    a, b = ((tmp_path / x / "model.data").read_bytes() for x in "ab")
    assert a == b


def test_large_tensors_start_on_a_page():
    model = make_tiny("llama3", hidden_size=256, intermediate_size=2048)
    slots = data_layout(fused_from(model), {})
    large = [s for s in slots if s.nbytes >= 1 << 20]
    assert large and all(s.offset % 4096 == 0 for s in large)
    assert all(s.offset % 64 == 0 for s in slots)


@pytest.mark.parametrize("io", ["deepsparse", "optimum"])
def test_plan_tells_the_sizes(io: Any, tmp_path: Path):
    model = fused_from(make_tiny("mistral"))
    options = GraphOptions(io=io, sequence_length=100)
    plan = plan_decoder(model, options)
    lower_decoder(model, tmp_path, options)
    assert {f.name: f.nbytes for f in plan.files} == {
        p.name: p.stat().st_size for p in tmp_path.iterdir()
    }
    assert plan.actions["model.layers.0.mlp.up_proj.weight"] == "copied, transposed"
    assert plan.actions["model.embed_tokens.weight"] == "copied"


def test_progress_ends_at_the_total(tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    model = fused_from(make_tiny("llama2"))
    lower_decoder(model, tmp_path, GraphOptions(), lambda *step: seen.append(step))
    written = sum(t.nbytes for t in read_back(tmp_path))
    assert [s[1] for s in seen] == sorted(s[1] for s in seen)
    assert seen[-1][1] == written and seen[-1][1] <= seen[-1][2]


@pytest.mark.parametrize("length", [0, -1, 257])
def test_sequence_length_out_of_range_is_refused(length: int, tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        lowered(tmp_path, sequence_length=length)
    assert caught.value.code == "target-option"


def test_sliding_window_bounds_the_sequence(tmp_path: Path):
    with pytest.raises(UsageError, match="1 to 32"):
        lowered(tmp_path / "a", "mistral", sliding_window=32, sequence_length=33)
    lowered(tmp_path / "b", "mistral", sliding_window=32)
    props = {p.key: p.value for p in read_graph(tmp_path / "b" / "model.onnx").metadata_props}
    assert props["sparse_export.sequence_length"] == "32"


def test_tensor_without_a_place_is_refused(tmp_path: Path):
    model = fused_from(make_tiny("llama2"))
    stray = FusedTensor("model.stray", (4,), lambda r0, r1: np.zeros(r1 - r0, np.float32))
    more = FusedModel(model.checked, {**model.tensors, stray.name: stray}, {}, False, {})
    with pytest.raises(InputRefused) as caught:
        lower_decoder(more, tmp_path, GraphOptions())
    assert (caught.value.code, caught.value.tensor) == ("target-refused", "model.stray")
    assert not list(tmp_path.iterdir())


def test_branch_on_the_embedding_is_refused(tmp_path: Path):
    branch = LowRank(np.zeros((2, 64), np.float32), np.zeros((272, 2), np.float32), 1.0)
    model = fused_from(make_tiny("llama2"), branches={"model.embed_tokens": branch})
    with pytest.raises(InputRefused, match="embedding"):
        lower_decoder(model, tmp_path, GraphOptions())


@pytest.mark.parametrize(("tokens", "sequence"), [(0, 8), (8, 8), (9, 8)])
def test_static_variant_needs_room_for_a_cache(tokens: int, sequence: int, tmp_path: Path):
    with pytest.raises(UsageError):
        static_variant(tmp_path / "model.onnx", tmp_path / "x.onnx", tokens, sequence)


def test_static_variant_fixes_every_dimension(tmp_path: Path):
    _, folder = lowered(tmp_path, "llama3")
    before = (folder / "model.onnx").read_bytes()
    out = static_variant(folder / "model.onnx", folder / "s.onnx", 4, 64, cache_batch0=True)
    graph = read_graph(out).graph
    values = {v.name: _dims(v) for v in [*graph.input, *graph.output]}
    assert all(isinstance(d, int) for dims in values.values() for d in dims)
    assert values["causal_mask"] == [1, 1, 4, 64]
    assert values["past_key_values.0.key"] == [0, 4, 60, 16]
    assert values["present.0.key"] == [0, 4, 64, 16]
    assert {e.value for t in graph.initializer for e in t.external_data if e.key == "location"} == {
        "model.data"
    }
    assert (folder / "model.onnx").read_bytes() == before


def test_config_leaves_without_paths():
    config = {
        "_name_or_path": "somebody/model",
        "cache": "/home/me/cache",
        "windows": "C:\\models",
        "model_type": "llama",
        "nested": {"dir": "/root", "keep": "a/b"},
    }
    assert clean_config(config) == {"model_type": "llama", "nested": {"keep": "a/b"}}


def test_companions_are_config_and_tokenizer(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    save_tokenizer(source)
    model = fused_from(make_tiny("llama3"), root=source)
    write_companions(model, out)
    assert (out / "config.json").read_bytes() == config_bytes(model)
    assert b'"tie_word_embeddings": true' in config_bytes(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def _dims(value: onnx.ValueInfoProto) -> list[Any]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_param if d.HasField("dim_param") else d.dim_value for d in dims]
