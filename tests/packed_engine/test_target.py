"""The packed target from the command line to a published folder; its session's bounds and words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from backends.packed.engine.target import PackedCpuTarget
from backends.packed.kernels.decoder import Layer, Plan
from backends.packed.kernels.library import library
from backends.packed.kernels.linear import CpuLinear
from exporter.arch.decoder import DecoderSpec
from exporter.cli import run
from exporter.contract import Session
from exporter.errors import EngineUnfit, InputRefused, UsageError
from exporter.registry import load_target
from tests.tiny import CONV1D, EXPERTS, save_tiny
from tests.vllm_target.models import PATTERNS, by_role, everything, fused, lower, nm, save_pruned
from tests.vllm_target.models import unstructured as at

MIXED = by_role(gate_proj=nm(3, 8), o_proj=everything, rest=at(0.7))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pruned("qwen2", tmp_path_factory.mktemp("packed") / "m", MIXED)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    target = PackedCpuTarget()
    return lower(target, fused(model, target), tmp_path / "out")


@pytest.fixture
def session(folder: Path) -> Any:
    made: Session = PackedCpuTarget().open(folder, threads=1)
    yield made
    made.close()


@pytest.mark.parametrize(
    "options", ["", ",values=int8", ",values=int4,head=int8", ",values=int8,activations=int8"]
)
def test_an_export_is_verified_by_this_engine(options: str, model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run([str(model), "--target", f"packed{options}", "-o", str(out)]) == 0
    report = json.loads((out / ".sparse-export/report.json").read_text())
    assert "sparse-export packed" in json.dumps(report)
    assert run(["verify", str(out)]) == 0


def test_a_changed_value_is_found(model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run([str(model), "--target", "packed,values=int8", "-o", str(out)]) == 0
    weights = out / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-40] ^= 1
    weights.write_bytes(bytes(content))
    assert run(["verify", str(out)]) != 0


@pytest.mark.parametrize("kind", [CONV1D, *EXPERTS])
def test_other_architectures_are_refused(kind: str, tmp_path: Path, capsys: Any):
    source = save_tiny(kind, tmp_path / "m")
    assert run([str(source), "--target", "packed", "-o", str(tmp_path / "out")]) != 0
    assert f"the CPU decoder runs no {kind}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_sequences_end_at_the_window_and_at_the_context(tmp_path: Path):
    source = save_tiny("mistral", tmp_path / "m", sliding_window=32)
    target = PackedCpuTarget(context=20)
    found = {d.level: d.message for d in target.inspect(fused(source, target))}
    assert "sequences end at 32" in found["warning"]
    out = lower(target, fused(source, target), tmp_path / "out")
    for context, longest in ((20, 20), (100, 32)):
        session = PackedCpuTarget(context=context).open(out)
        assert session.max_tokens == longest
        session.prefill([5] * longest)
        with pytest.raises(EngineUnfit, match=f"{longest + 1} tokens"):
            session.decode(5)
        session.close()


@pytest.mark.parametrize("option", ["context=0", "head=int4", "activations=fp8", "values=nf4"])
def test_senseless_options_are_refused(option: str):
    key, _, value = option.partition("=")
    with pytest.raises(UsageError, match=key) as caught:
        load_target("packed", {key: value})
    assert caught.value.code == "target-option"


def test_a_session_starts_anew_with_each_prompt(session: Session):
    first = session.prefill([5, 6, 7])
    kept = first.copy()
    session.decode(8)
    assert np.array_equal(session.prefill([5, 6, 7]), kept) and np.array_equal(first, kept)
    assert first.shape == (3, 272) and first.dtype == np.float32


def test_what_a_session_cannot_run_is_refused(session: Any):
    refused = {
        "token 272": lambda: session.prefill([5, 272]),
        "token -1": lambda: session.decode(-1),
        "0 tokens": lambda: session.prefill([]),
        "41 tokens": lambda: session.generate([5] * 40, 2),
        "17 sequences": lambda: session.generate_batch([[5]] * 17, 2),
        "0 sequences": lambda: session.generate_batch([], 2),
    }
    for text, call in refused.items():
        with pytest.raises(EngineUnfit, match=text) as caught:
            call()
        assert caught.value.code == "engine-refused"
    assert len(session.generate([5] * 40, 1).tokens) == 1  # as long as the model allows
    assert session.generate([5], 0).tokens == ()


def test_facts_and_end(folder: Path):
    before = library().threads
    session = PackedCpuTarget().open(folder, threads=1)
    facts = session.facts()
    assert (facts.threads, facts.ops_share, facts.extra["activations"]) == (1, 1.0, "fp32")
    stored = (folder / "model.safetensors").stat().st_size
    assert 0.5 * stored < facts.weight_bytes < 3 * stored
    session.close()
    session.close()
    assert library().threads == before
    with pytest.raises(EngineUnfit, match="closed"):
        session.decode(5)


def test_bytes_of_a_step_are_those_of_the_form_for_one_row():
    """A copy of another form, for more rows, is in memory but not read."""
    one, few, head = (cast(CpuLinear, SimpleNamespace(row_nbytes=n)) for n in (10, 300, 7000))
    layers = [Layer({"q": (one, few, few), "k": (few, few, one)}, {}, {})] * 2
    empty = np.zeros((0, 0), np.float32)
    spec = cast(DecoderSpec, None)
    plan = Plan(spec, layers, empty, empty, (head, head, one), (empty, empty), 1)
    assert plan.step_bytes() == 2 * (10 + 300) + 7000


@pytest.mark.parametrize("fault", ["gone", "empty", "cut", "config", "renamed"])
def test_a_broken_folder_is_a_typed_error(fault: str, folder: Path):
    weights = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    layers = config["quantization_config"]["layers"]
    name = "model.layers.0.mlp.up_proj"
    if fault == "gone":
        weights.unlink()
    elif fault == "empty":
        weights.write_bytes(b"")
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif fault == "config":
        layers[name]["kind"], layers[name]["n"], layers[name]["m"] = "nm", 2, 4
    else:
        layers["other"] = layers.pop(name)
    (folder / "config.json").write_text(json.dumps(config))
    before = library().threads
    with pytest.raises((EngineUnfit, InputRefused)) as caught:
        PackedCpuTarget().open(folder, threads=1)
    assert caught.value.code == "engine-refused"
    assert library().threads == before


def test_a_plain_folder_is_refused(model: Path):
    with pytest.raises(EngineUnfit) as caught:
        PackedCpuTarget().open(model)
    assert caught.value.code == "engine-refused"


def test_a_machine_without_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSE_EXPORT_ISA", "sse9")
    target = PackedCpuTarget()
    status = target.runtime()
    assert not status.available and "sse9" in status.reason
    with pytest.raises(EngineUnfit) as caught:
        target.open(folder)
    assert caught.value.code == "engine-unfit"


def test_vllm_and_transformers_read_the_same_folder(folder: Path):
    """One format: what this target writes, the others' readers take."""
    from backends.hf.session import open_session

    other, ours = open_session(folder), PackedCpuTarget().open(folder)
    tokens = list(range(3, 30))
    theirs, mine = other.prefill(tokens), ours.prefill(tokens)
    assert np.abs(theirs - mine).max() / np.abs(theirs).max() < 2e-2
    other.close()
    ours.close()


def test_patterns_are_all_taken(tmp_path: Path):
    for name, rule in PATTERNS.items():
        source = save_pruned("llama2", tmp_path / "m", rule)
        target = PackedCpuTarget()
        assert not [d for d in target.inspect(fused(source, target)) if d.level == "refusal"]
        shutil.rmtree(tmp_path / "m")
        del name
