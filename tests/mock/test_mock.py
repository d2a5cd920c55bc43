"""The mock engine keeps its times, answers like a cache would, and fails as told."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backends.mock.make import make_mock
from backends.mock.session import MockSession
from backends.mock.spec import MockSpec, read_spec
from backends.mock.target import MockTarget
from backends.process.client import open_in_process
from bench.artefacts import open_artefact
from bench.correct import require_correct
from exporter.errors import EngineUnfit, InputRefused, UsageError, VerificationFailed
from exporter.store.manifest import check_files, read_manifest

FAST = {"ttft_ms": 0.0, "tpot_ms": 0.0}


def test_times_are_those_that_were_set() -> None:
    session = MockSession(MockSpec(ttft_ms=10, tpot_ms=2))
    runs = [session.generate((1, 2), 9).seconds for _ in range(7)]
    assert statistics.median(r[0] for r in runs) == pytest.approx(0.010, rel=0.02)
    gaps = [(r[-1] - r[0]) / 8 for r in runs]
    assert statistics.median(gaps) == pytest.approx(0.002, rel=0.02)


def test_cached_decode_answers_as_prefill_does() -> None:
    session = MockSession(MockSpec(**FAST))
    whole = session.prefill((3, 1, 4, 1))
    session.prefill((3, 1))
    assert np.array_equal(session.decode(4), whole[2])
    assert np.array_equal(session.decode(1), whole[3])
    assert session.prefill((3, 1, 4, 1), logits="last").tolist() == [whole[3].tolist()]


def test_a_batch_answers_as_its_sequences_do_and_takes_longer() -> None:
    session = MockSession(MockSpec(ttft_ms=0, tpot_ms=2))
    prompts = [(1, 2), (3,), (4, 5, 6)]
    batch = session.generate_batch(prompts, 6)
    assert [b.tokens for b in batch] == [session.generate(p, 6).tokens for p in prompts]
    assert batch[0].seconds[-1] >= 5 * 0.002 * 1.2


def test_density_and_plant_set_the_step() -> None:
    dense, sparse = MockSpec(tpot_ms=10), MockSpec(tpot_ms=10, density=0.5, slowdown=1.1)
    assert dense.step_seconds == pytest.approx(0.010)
    assert sparse.step_seconds == pytest.approx(0.010 * 0.6 * 1.1)
    assert sparse.kept_bytes == dense.kept_bytes // 2


def test_noise_repeats_by_seed_and_differs_without() -> None:
    def draws(seed: int | None) -> list[float]:
        session = MockSession(MockSpec(**FAST, process_noise=0.2, step_noise=0.1, seed=seed))
        return session._steps(5, 1).tolist() + [session._process]  # type: ignore[attr-defined]

    assert draws(4) == draws(4) and draws(None)[-1] != draws(None)[-1]


def test_an_artefact_of_the_mock_is_one_like_any_other(tmp_path: Path) -> None:
    make_mock(tmp_path / "m", MockSpec(**FAST))
    check_files(tmp_path / "m", read_manifest(tmp_path / "m"))
    artefact = open_artefact(tmp_path / "m")
    assert artefact.target.name == "mock"
    session = open_in_process("mock", tmp_path / "m")
    try:
        assert require_correct(artefact, session).greedy_tokens == 8
        batch = session.generate_batch([(1, 2), (3,)], 4)  # type: ignore[attr-defined]
        assert session.max_batch == 16 and len(batch) == 2  # type: ignore[attr-defined]
        assert batch[1].tokens == session.generate((3,), 4).tokens
    finally:
        session.close()
    with pytest.raises(UsageError, match="output-exists"):
        make_mock(tmp_path / "m", MockSpec())


def test_a_wrong_mock_misses_its_selftest(tmp_path: Path) -> None:
    make_mock(tmp_path / "m", MockSpec(**FAST, wrong=0.5))
    artefact = open_artefact(tmp_path / "m")
    with pytest.raises(VerificationFailed, match="outputs-differ"):
        require_correct(artefact, MockTarget().open(tmp_path / "m"))


@pytest.mark.parametrize(("fail", "code"), [("missing", "engine-missing"), ("crash", "crashed")])
def test_it_fails_as_told(tmp_path: Path, fail: str, code: str) -> None:
    make_mock(tmp_path / "m", MockSpec(**FAST, fail=fail))  # type: ignore[arg-type]
    with pytest.raises(EngineUnfit, match=code):
        open_in_process("mock", tmp_path / "m").generate((1,), 3)


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="input-missing"):
        read_spec(tmp_path)
    (tmp_path / "mock.json").write_text('{"tpot_ms": -1}')
    with pytest.raises(InputRefused, match="tpot_ms"):
        read_spec(tmp_path)


def test_no_model_can_be_exported_to_it(tmp_path: Path) -> None:
    found = MockTarget().inspect(SimpleNamespace())  # type: ignore[arg-type]
    assert [d.level for d in found] == ["refusal"]
    with pytest.raises(InputRefused, match="make-mock"):
        MockTarget().lower(SimpleNamespace(), tmp_path, lambda *a: None)  # type: ignore[arg-type]
