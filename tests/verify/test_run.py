"""Verification from end to end with a fake target: sound, faulty, with a fallback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.reference.session import open_reference
from exporter.contract import Tolerance
from exporter.errors import EngineUnfit, VerificationFailed
from exporter.verify import run
from exporter.verify.result import VerificationMissed, VerifyReport
from exporter.verify.run import verify_staged
from exporter.verify.selftest_file import read_selftest
from tests.tiny import save_tiny
from tests.verify.fakes import Arrays, FakeSession, FakeTarget, MemoryModel, memory_model

SELFTEST = ".sparse-export/selftest.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MemoryModel:
    """Short sequences, so that the slow engine answers soon."""
    folder = tmp_path_factory.mktemp("run")
    return memory_model(
        save_tiny("llama2", folder, sparsity=0.6, tied=True, max_position_embeddings=24)
    )


def verify(model: MemoryModel, folder: Path, target: Any, **options: Any) -> VerifyReport:
    folder.mkdir(exist_ok=True)
    target.lower(model, folder)
    return verify_staged(target, model, folder, reference_opener=open_reference, **options)


def test_sound_artefact(model: MemoryModel, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    report = verify(
        model, tmp_path / "out", FakeTarget(), progress=lambda *event: heard.append(event)
    )
    assert report.verdict.passed and report.verdict.code is None and report.fallback is None
    assert report.engine == "slow 1" and report.summary.startswith("passed: 20 tensors")
    assert "96 of 96 greedy tokens equal on 8 prompts" in report.summary
    assert report.selftest is not None and report.selftest.lengths == (5, 9, *[12] * 6)
    assert {what for what, _, _ in heard} == {"re-read", "reference", "engine"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # nothing is left beside it
    again = VerifyReport.model_validate(report.model_dump(mode="json"))
    assert again.model_dump_json() == report.model_dump_json()


def test_report_and_selftest_are_the_same_each_time(model: MemoryModel, tmp_path: Path) -> None:
    one = verify(model, tmp_path / "one", FakeTarget())
    two = verify(model, tmp_path / "two", FakeTarget())
    assert one == two
    assert (tmp_path / "one" / SELFTEST).read_bytes() == (tmp_path / "two" / SELFTEST).read_bytes()
    text = one.model_dump_json()
    assert str(tmp_path) not in text and "seconds" not in text


def test_structure_fault_stops_before_the_engine(model: MemoryModel, tmp_path: Path) -> None:
    def never(session: FakeSession) -> Any:
        raise AssertionError("the engine ran")

    target = FakeTarget(change=lambda a: a.update({DOWN: a[DOWN] * 2}), engine=never)
    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out", target)
    error = caught.value
    assert (error.code, error.exit_code) == ("verify-structure", 1)
    assert DOWN in error.found and "2 times" in error.found
    assert not error.report.verdict.passed and error.report.numbers is None


def half(arrays: Arrays) -> None:
    arrays[DOWN] *= np.float32(0.5)


def test_numbers_fault_names_code_and_hint(model: MemoryModel, tmp_path: Path) -> None:
    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out", FakeTarget(state=half))
    assert caught.value.code == "verify-numbers" and caught.value.exit_code == 1
    assert "relative error of logits" in caught.value.found and "--bisect" in caught.value.hint
    assert caught.value.report.bisect is None


def scale(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name] * np.float32(0.9)})


def head(arrays: Arrays) -> None:
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] * np.float32(0.9)


@pytest.mark.parametrize(
    ("state", "first"),
    [
        (scale("model.embed_tokens.weight"), "embedding"),
        (scale("model.layers.0.self_attn.v_proj.weight"), "layer.0"),
        (half, "layer.1"),
        (scale("model.norm.weight"), "norm"),
        (head, "head"),
    ],
)
def test_bisect_names_the_first_layer(
    state: Any, first: str, model: MemoryModel, tmp_path: Path
) -> None:
    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out", FakeTarget(state=state), bisect=True)
    found = caught.value.report.bisect
    assert found is not None and found.first == first
    assert f"first layer out of tolerance: {first}" in caught.value.found
    assert [e.layer for e in found.layers][:4] == ["embedding", "layer.0", "layer.1", "norm"]


def test_bisect_without_hidden_states_says_so(model: MemoryModel, tmp_path: Path) -> None:
    class Blind(FakeTarget):
        def probe(self, folder: Path, tokens: Any) -> Any:
            raise NotImplementedError("no probe")

    with pytest.raises(VerificationMissed) as caught:
        verify(model, tmp_path / "out", Blind(state=half), bisect=True)
    found = caught.value.report.bisect
    assert found is not None and found.first is None and "no probe" in found.note


def test_engine_that_rewrites_what_is_shipped(model: MemoryModel, tmp_path: Path) -> None:
    def rewrite(session: FakeSession) -> FakeSession:
        with (tmp_path / "out" / "graph.json").open("a") as file:
            file.write(" ")
        return session

    with pytest.raises(VerificationMissed, match="graph.json was changed while the engine ran"):
        verify(model, tmp_path / "out", FakeTarget(engine=rewrite))


def test_engine_with_shorter_sequences(model: MemoryModel, tmp_path: Path) -> None:
    report = verify(model, tmp_path / "out", FakeTarget(max_tokens=16))
    assert report.verdict.passed and report.selftest is not None
    assert max(report.selftest.lengths) + report.selftest.new_tokens <= 16
    assert read_selftest(tmp_path / "out" / SELFTEST).prompts.new_tokens == 8


class Absent(FakeTarget):
    """A target whose engine cannot run here, and that names another."""

    def fallback(self) -> str:
        return "other"


def test_fallback_runs_the_same_files_and_says_so(model: MemoryModel, tmp_path: Path) -> None:
    asked: list[str] = []

    def load(name: str) -> Any:
        asked.append(name)
        return FakeTarget(name="other")

    absent = Absent(available=False, tolerance=Tolerance(1e-3))
    report = verify(model, tmp_path / "out", absent, load_target=load)
    assert asked == ["other"] and report.verdict.passed and report.target == "fake"
    assert report.fallback is not None and "no such CPU" in report.fallback
    assert "other ran the same files" in report.fallback
    assert report.not_checked == ("the artefact in slow itself",)
    assert "in place of the target's own engine" in report.summary


def test_no_engine_at_all(model: MemoryModel, tmp_path: Path) -> None:
    with pytest.raises(EngineUnfit, match="no such CPU"):
        verify(model, tmp_path / "a", FakeTarget(available=False))
    with pytest.raises(EngineUnfit, match="other in its place"):
        verify(
            model,
            tmp_path / "b",
            Absent(available=False),
            load_target=lambda name: FakeTarget(name=name, available=False),
        )


def test_reference_and_engine_are_closed_also_on_errors(
    model: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[FakeSession] = []

    def keep(session: FakeSession) -> FakeSession:
        opened.append(session)
        return session

    def fail(*_: Any) -> Any:
        raise EngineUnfit("engine-crashed", "signal 11")

    monkeypatch.setattr(run, "check_numbers", fail)
    with pytest.raises(EngineUnfit):
        verify(model, tmp_path / "out", FakeTarget(engine=keep))
    assert [s.closed for s in opened] == [1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_broken_reference_is_an_error_of_its_own(model: MemoryModel, tmp_path: Path) -> None:
    def broken(fused: Any) -> Any:
        session = open_reference(fused)
        session.decode = lambda token: np.zeros(272, np.float32)  # type: ignore[method-assign]
        return session

    (tmp_path / "out").mkdir()
    FakeTarget().lower(model, tmp_path / "out")
    with pytest.raises(VerificationFailed) as caught:
        verify_staged(FakeTarget(), model, tmp_path / "out", reference_opener=broken)
    assert caught.value.code == "reference-broken"
    assert not (tmp_path / "out" / SELFTEST).exists()


def test_verification_itself_imports_no_engine() -> None:
    code = (
        "import sys, exporter.verify.run\n"
        "print(*(sys.modules.keys() & {'torch', 'transformers', 'onnx', 'backends', 'tokenizers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
