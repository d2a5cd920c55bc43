"""The target without its engine: what it says, plans and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.deepsparse import diagnose
from backends.deepsparse.runtime import LICENCE, RUNTIME
from backends.deepsparse.settings import SETTINGS_FILE
from backends.deepsparse.target import DeepSparseTarget
from exporter.errors import EngineUnfit, UsageError
from exporter.model import FusedModel
from exporter.registry import load_runtime, load_target
from tests.deepsparse.lowered import lower
from tests.fused import fused_from
from tests.tiny import make_tiny, save_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FusedModel:
    root = tmp_path_factory.mktemp("source")
    save_tokenizer(root)
    return fused_from(make_tiny("llama2"), root=root)


def with_spec(model: FusedModel, **changes: Any) -> FusedModel:
    return replace(model, checked=replace(model.checked, spec=replace(model.spec, **changes)))


def texts(found: Any, level: str) -> str:
    return "\n".join(d.message for d in found if d.level == level)


def test_it_is_found_by_name_with_its_options() -> None:
    options = {"sequence_length": "512", "prefill-chunk": "16", "cache": "external"}
    assert load_target("deepsparse", options) == DeepSparseTarget(512, 16, "external")
    assert load_runtime("deepsparse") is RUNTIME
    with pytest.raises(UsageError):
        load_target("deepsparse", {"cache": "sideways"})


def test_the_window_names_version_hardware_and_licence() -> None:
    window = DeepSparseTarget().window
    assert (window.engine, window.versions, window.python) == ("deepsparse", "1.8.0", ">=3.8,<3.12")
    assert "AVX2" in window.hardware and "evaluation only" in window.licence
    assert DeepSparseTarget().tolerance.max_rel == 1e-3
    assert DeepSparseTarget().fallback() == "onnxruntime"


@pytest.mark.parametrize(
    ("isa", "level", "says"),
    [
        ("avx2", "warning", "gains nothing from sparsity at decode"),
        ("none", "warning", "cannot run here"),
        ("avx512", "note", "decode gain"),
        ("avx512_vnni", "note", "decode gain"),
    ],
)
def test_the_cpu_and_the_licence_are_always_told(
    model: FusedModel, isa: str, level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnose, "isa", lambda: isa)
    found = DeepSparseTarget().inspect(model)
    assert says in texts(found, level)
    assert LICENCE in texts(found, "note")
    assert not texts(found, "refusal")


def test_lengths_and_cache_are_told(model: FusedModel) -> None:
    long = with_spec(model, max_positions=4096, sliding_window=2048)
    notes = texts(DeepSparseTarget().inspect(long), "note")
    assert "up to 1023 of the model's 4096 positions" in notes
    assert "sliding window of 2048" in notes
    assert "internal_kv_cache=False" not in texts(DeepSparseTarget().inspect(model), "warning")
    outside = DeepSparseTarget(cache="external").inspect(model)
    assert "internal_kv_cache=False" in texts(outside, "warning")


def test_more_than_was_tested_is_told(model: FusedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "TESTED_BYTES", 100_000)
    assert "above 4.5 GB" in texts(DeepSparseTarget().inspect(model), "warning")


def test_a_tokenizer_it_would_read_otherwise_is_told(model: FusedModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"ignore_merges": true}}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    found = DeepSparseTarget().inspect(fused_from(make_tiny("llama2"), root=tmp_path))
    assert "ignore_merges" in texts(found, "warning")


def test_too_short_a_model_is_refused(model: FusedModel) -> None:
    short = with_spec(model, max_positions=63)
    assert [d.level for d in DeepSparseTarget().inspect(short)] == ["refusal"]


@pytest.mark.parametrize(
    ("inputs", "sparsity", "refused"),
    [(72, 0.7, True), (1000, 0.5, True), (72, 0.1, False), (80, 0.7, False), (576, 0.9, False)],
)
def test_widths_its_sparse_kernels_get_wrong(
    model: FusedModel, inputs: int, sparsity: float, refused: bool
) -> None:
    pattern: Any = SimpleNamespace(in_features=inputs, sparsity=sparsity)
    checked = replace(model.checked, patterns={"model.layers.1.mlp.down_proj": pattern})
    found = list(diagnose.refusals(replace(model, checked=checked)))
    assert bool(found) == refused
    if refused:
        assert found[0].where == "model.layers.1.mlp.down_proj" and str(inputs) in found[0].message


def test_the_plan_is_what_lowering_writes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    save_tokenizer(source)
    model = fused_from(make_tiny("qwen3"), root=source)
    out = tmp_path / "out"
    out.mkdir()
    DeepSparseTarget().lower(model, out, lambda *_: None)
    plan = DeepSparseTarget().plan(model)
    sizes = {p.name: p.stat().st_size for p in out.iterdir()}
    assert {f.name: f.nbytes for f in plan.files} == sizes
    assert set(sizes) == {
        "model.onnx",
        "model.data",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        SETTINGS_FILE,
    }
    weights = {t.name for t in DeepSparseTarget().read_back(out)}
    assert set(model.tensors) <= weights


def test_opening_without_the_environment_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("backends.runtimes.find_python", lambda *_: SimpleNamespace())
    assert DeepSparseTarget().runtime().reason.startswith("not installed: run `sparse-export")
    with pytest.raises(EngineUnfit) as caught:
        DeepSparseTarget().open(tmp_path)
    assert caught.value.code == "engine-missing"


def test_without_onnx_it_says_so(
    model: FusedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.decoder_graph.need.find_spec", lambda name: None)
    for call in (
        lambda: DeepSparseTarget().plan(model),
        lambda: DeepSparseTarget().lower(model, tmp_path, lambda *_: None),
        lambda: DeepSparseTarget().read_back(tmp_path),
    ):
        with pytest.raises(EngineUnfit) as caught:
            call()
        assert caught.value.code == "engine-missing" and "[onnx]" in caught.value.found
    assert list(tmp_path.iterdir()) == []


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lower(tmp_path / name, "mistral", DeepSparseTarget())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_lock_covers_all_it_installs() -> None:
    """Every requirement has hashes, and no index, path or URL stands in the file."""
    blocks = RUNTIME.lock.read_text().replace("\\\n", " ").splitlines()
    assert len(blocks) > 40
    for block in blocks:
        assert "==" in block.split()[0] and "--hash=sha256:" in block, block[:80]
        assert "://" not in block and " @ " not in block and "--index" not in block
    named = [block.split()[0] for block in blocks]
    assert "deepsparse==1.8.0" in named and "numpy==1.26.4" in named
    assert not any(name.startswith(("torch==", "numpy==2")) for name in named)
