"""DeepSparse itself on tiny models, against transformers."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.deepsparse.settings import SETTINGS_FILE
from backends.deepsparse.target import DeepSparseTarget
from backends.onnxruntime.target import OnnxRuntimeTarget
from exporter.errors import EngineUnfit, UsageError
from tests.deepsparse.lowered import digests, greedy_of, logits_of, lower, prompts
from tests.tiny import KINDS

pytestmark = pytest.mark.deepsparse

# Sparse kernels want inputs in multiples of 16 (backends/deepsparse/diagnose.py).
WIDE = {"smollm2": {"hidden_size": 144}}
LENGTHS = (5, 16, 63, 64, 65, 128, 150, 200)


def relative(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
def test_families(kind: str, tmp_path: Path) -> None:
    target = DeepSparseTarget()
    model = lower(tmp_path / "out", kind, target, sparsity=0.7, **WIDE.get(kind, {}))
    before = digests(tmp_path / "out")
    with target.open(tmp_path / "out", threads=1) as session:
        facts = session.facts()
        assert facts.ops_share == 1.0
        assert facts.version == "1.8.0" and facts.threads == 1
        assert facts.extra["isa"].startswith("avx") and facts.extra["cache"] == "internal"
        assert facts.extra["prefill_chunk"] == 64 and session.max_tokens == 255
        assert facts.weight_bytes == 0  # not known: of the file, it reads the kept weights at most
        assert facts.extra["file_bytes"] >= (tmp_path / "out" / "model.data").stat().st_size
        for tokens in prompts(LENGTHS):
            want = logits_of(model, tokens)
            assert relative(session.prefill(tokens), want) <= 1e-4
            assert relative(session.prefill(tokens, logits="last"), want[-1:]) <= 1e-4
        for tokens in prompts(LENGTHS)[:4]:
            made = session.generate(tokens, 32)
            assert made.tokens == greedy_of(model, tokens, 32)
            assert 0 < made.seconds[0] < made.seconds[-1]
    assert digests(tmp_path / "out") == before  # it rewrites its own copy only


@pytest.mark.parametrize(
    ("head_dim", "cache"), [(32, "internal"), (64, "internal"), (128, "internal"), (80, "external")]
)
def test_head_sizes_up_to_the_last_token(head_dim: int, cache: str, tmp_path: Path) -> None:
    target = DeepSparseTarget(sequence_length=128)
    model = lower(tmp_path / "out", "llama3", target, head_dim=head_dim)
    tokens = prompts((128,))[0]
    want = logits_of(model, tokens)
    with target.open(tmp_path / "out", threads=1) as session:
        assert session.facts().extra["cache"] == cache
        last = session.max_tokens
        assert last == (127 if cache == "internal" else 128)
        assert relative(session.prefill(tokens[:last]), want[:last]) <= 1e-4
        with pytest.raises(EngineUnfit, match=f"{last + 1} tokens in an artefact for {last}"):
            session.decode(tokens[0])
        session.prefill(tokens[:3])
        rows = np.stack([session.decode(token) for token in tokens[3:last]])
        assert relative(rows, want[3:last]) <= 1e-4


def test_both_caches_and_other_chunks_agree(tmp_path: Path) -> None:
    model = lower(tmp_path / "out", "smollm2", DeepSparseTarget(), sparsity=0.5, hidden_size=144)
    tokens = prompts((101,))[0]
    want = logits_of(model, tokens)
    for target in (
        DeepSparseTarget(cache="external"),
        DeepSparseTarget(prefill_chunk=1),
        DeepSparseTarget(sequence_length=128, prefill_chunk=16),
    ):
        with target.open(tmp_path / "out", threads=1) as session:
            assert relative(session.prefill(tokens), want) <= 1e-4
    with pytest.raises(UsageError):
        DeepSparseTarget(sequence_length=512).open(tmp_path / "out")


def test_onnxruntime_runs_the_same_bytes(tmp_path: Path) -> None:
    target = DeepSparseTarget()
    assert target.fallback() == "onnxruntime"
    model = lower(tmp_path / "out", "qwen2", target, sparsity=0.7)
    tokens = prompts((40,))[0]
    with target.open(tmp_path / "out", threads=1) as session:
        sparse = session.prefill(tokens)
    session = OnnxRuntimeTarget().open(tmp_path / "out", threads=1)
    try:
        assert relative(session.prefill(tokens), logits_of(model, tokens)) <= 1e-4
        assert relative(sparse, session.prefill(tokens)) <= 1e-4
    finally:
        session.close()
    states = target.probe(tmp_path / "out", tokens)
    assert list(states) == ["embedding", "layer.0", "layer.1", "norm"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepsparse") / "out"
    lower(folder, "smollm2", DeepSparseTarget(sequence_length=64))
    return folder


def broken(artefact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artefact, tmp_path / "copy")


def refusal(folder: Path) -> EngineUnfit:
    with pytest.raises(EngineUnfit) as caught:
        DeepSparseTarget().open(folder, threads=1)
    return caught.value


def test_a_truncated_graph_is_refused(artefact: Path, tmp_path: Path) -> None:
    folder = broken(artefact, tmp_path)
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    assert refusal(folder).code == "engine-refused"


def test_missing_files_are_refused(artefact: Path, tmp_path: Path) -> None:
    folder = broken(artefact, tmp_path)
    (folder / "model.data").unlink()
    error = refusal(folder)
    assert error.code == "engine-refused" and "'model.data'" in error.found
    (folder / "model.onnx").unlink()
    assert refusal(folder).code == "engine-refused"
    (folder / SETTINGS_FILE).unlink()
    assert refusal(folder).file == SETTINGS_FILE


def test_a_data_file_elsewhere_is_refused(artefact: Path, tmp_path: Path) -> None:
    import onnx

    folder = broken(artefact, tmp_path)
    graph = onnx.load_model(folder / "model.onnx", load_external_data=False)
    shutil.move(folder / "model.data", tmp_path / "model.data")
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.data"
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    assert "'../model.data'" in refusal(folder).found


def test_what_kills_the_compiler_is_a_typed_error(artefact: Path, tmp_path: Path) -> None:
    """An integer matmul after DynamicQuantizeLinear ends the process: no exception, no signal."""
    import onnx
    from onnx import helper

    folder = broken(artefact, tmp_path)
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    weight = onnx.numpy_helper.from_array(np.ones((272, 272), np.uint8), "bad_weight")
    graph.initializer.append(weight)
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == "logits":
                node.output[i] = "before"
    scales = ["quantised", "scale", "zero"]
    graph.node.append(helper.make_node("DynamicQuantizeLinear", ["before"], scales))
    multiplied = ["quantised", "bad_weight", "zero"]
    graph.node.append(helper.make_node("MatMulInteger", multiplied, ["whole"]))
    graph.node.append(helper.make_node("Cast", ["whole"], ["logits"], to=onnx.TensorProto.FLOAT))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    error = refusal(folder)
    assert error.code == "engine-crashed" and "starting" in error.found
    assert "engine:" in error.found  # its last words


def test_a_killed_engine_is_a_typed_error(artefact: Path) -> None:
    with DeepSparseTarget().open(artefact, threads=1) as session:
        os.kill(session.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(EngineUnfit, match="killed by SIGKILL"):
            session.prefill([5, 6])


@pytest.mark.parametrize("tokens", [[], [-1], [272], [5] * 64])
def test_tokens_it_cannot_take(artefact: Path, tokens: list[int]) -> None:
    with DeepSparseTarget().open(artefact, threads=1) as session:
        with pytest.raises(EngineUnfit) as caught:
            session.prefill(tokens)
        assert caught.value.code == "engine-refused"
        assert session.prefill([5]).shape == (1, 272)


def test_the_artefact_says_how_to_open_it(artefact: Path) -> None:
    assert json.loads((artefact / SETTINGS_FILE).read_text()) == {
        "sequence_length": 64,
        "prompt_sequence_length": 16,
        "internal_kv_cache": True,
    }
