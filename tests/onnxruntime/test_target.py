"""The onnxruntime target: folder, plan, diagnostics, session behaviour and its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.onnxruntime.target import OnnxRuntimeTarget
from exporter.contract import Target
from exporter.errors import EngineUnfit
from tests.fused import fused_from
from tests.tiny import make_tiny, save_tokenizer


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A lowered smollm2 of sequence length 40."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    save_tokenizer(source)
    model = fused_from(make_tiny("smollm2"), root=source)
    target: Target = OnnxRuntimeTarget(sequence_length=40)
    target.lower(model, out, lambda *_: None)
    return out


def test_folder_is_the_plan(artefact: Path):
    source = artefact.parent / "in"
    model = fused_from(make_tiny("smollm2"), root=source)
    plan = OnnxRuntimeTarget(sequence_length=40).plan(model)
    files = {p.name: p.stat().st_size for p in artefact.iterdir()}
    assert {f.name: f.nbytes for f in plan.files} == files
    assert set(files) == {
        "model.onnx",
        "model.data",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_config_is_read_by_transformers(artefact: Path):
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(artefact)
    assert (config.model_type, config.num_key_value_heads) == ("llama", 3)
    assert AutoTokenizer.from_pretrained(artefact)("hi").input_ids


def test_session_starts_anew_with_each_prefill(artefact: Path):
    session = OnnxRuntimeTarget().open(artefact, threads=1)
    first = session.prefill([5, 6, 7])
    session.decode(8)
    assert np.array_equal(session.prefill([5, 6, 7]), first)
    assert first.shape == (3, 272) and first.dtype == np.float32
    assert np.array_equal(session.prefill([5, 6, 7], logits="last"), first[-1:])
    assert session.decode(9).shape == (272,)
    session.close()


def test_logits_outlive_the_next_step(artefact: Path):
    """A row handed out must not change when the engine's buffers are used again."""
    session = OnnxRuntimeTarget().open(artefact, threads=1)
    row = session.prefill([5, 6, 7])
    kept = row.copy()
    for token in range(10, 30):
        session.decode(token)
    assert np.array_equal(row, kept)


def test_length_is_bounded(artefact: Path):
    session = OnnxRuntimeTarget().open(artefact, threads=1)
    assert session.max_tokens == 40
    session.prefill(list(range(3, 43)))
    for call in (lambda: session.decode(3), lambda: session.prefill(list(range(41)))):
        with pytest.raises(EngineUnfit, match="41 tokens"):
            call()
    with pytest.raises(EngineUnfit, match="0 tokens"):
        session.prefill([])


def test_token_outside_the_vocabulary_is_a_typed_error(artefact: Path):
    session = OnnxRuntimeTarget().open(artefact, threads=1)
    with pytest.raises(EngineUnfit) as caught:
        session.prefill([272])
    assert caught.value.code == "engine-refused"


def test_facts(artefact: Path):
    session = OnnxRuntimeTarget().open(artefact, threads=2)
    facts = session.facts()
    assert (facts.engine, facts.threads, facts.ops_share) == ("onnxruntime", 2, 1.0)
    assert facts.weight_bytes == (artefact / "model.data").stat().st_size
    assert facts.peak_rss_bytes > 10 << 20 and facts.load_seconds > 0
    session.close()
    session.close()
    with pytest.raises(EngineUnfit, match="closed"):
        session.decode(1)


@pytest.mark.parametrize("name", ["model.onnx", "model.data"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_broken_artefact_is_a_typed_error(artefact: Path, name: str, content: bytes | None):
    (artefact / name).unlink()
    if content is not None:
        (artefact / name).write_bytes(content)
    with pytest.raises(EngineUnfit) as caught:
        OnnxRuntimeTarget().open(artefact)
    assert caught.value.code == "engine-refused"


def test_foreign_graph_is_refused(artefact: Path):
    import onnx

    model = onnx.load_model(artefact / "model.onnx", load_external_data=False)
    del model.metadata_props[:]
    (artefact / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineUnfit, match="not one of ours"):
        OnnxRuntimeTarget().open(artefact)


@pytest.mark.parametrize(
    ("tiny", "length", "levels"),
    [
        ({}, None, ["note"]),
        ({}, 256, ["note"]),
        ({}, 257, ["refusal", "note"]),
        ({}, 0, ["refusal", "note"]),
        ({"sliding_window": 32}, None, ["warning", "note"]),
        ({"sliding_window": 32}, 33, ["refusal", "warning", "note"]),
    ],
)
def test_inspect(tiny: dict[str, Any], length: int | None, levels: list[str]):
    model = fused_from(make_tiny("mistral", **tiny))
    found = OnnxRuntimeTarget(sequence_length=length).inspect(model)
    assert [d.level for d in found] == levels


def test_missing_engine_is_a_typed_error(artefact: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("backends.onnxruntime.target._NEEDED", ("onnx", "no_such_engine"))
    target = OnnxRuntimeTarget()
    status = target.runtime()
    assert not status.available and "no_such_engine" in status.reason
    for call in (lambda: target.open(artefact), lambda: target.probe(artefact, [1])):
        with pytest.raises(EngineUnfit) as caught:
            call()
        assert caught.value.code == "engine-missing"


def test_probe_and_read_back_of_the_target(artefact: Path):
    target = OnnxRuntimeTarget()
    assert target.runtime().available
    assert list(target.probe(artefact, [5, 6])) == ["embedding", "layer.0", "layer.1", "norm"]
    assert len(list(target.read_back(artefact))) == 20


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("backends.onnxruntime.target", "onnx onnxruntime torch transformers"),
        ("backends.onnxruntime.session", "torch transformers"),
        ("backends.decoder_graph.lower", "onnxruntime torch transformers"),
    ],
)
def test_imports_stay_light(module: str, banned: str):
    code = f"import sys, {module}; print([m for m in {banned.split()!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
