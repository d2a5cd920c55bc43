"""Positions that the model's own rounding excuses: few, measured, bounded, listed, kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.reference.session import TorchReference, open_reference
from exporter.contract import Tolerance
from exporter.verify.numbers import check_numbers
from exporter.verify.prompts import Prompts
from exporter.verify.result import NumbersResult, VerificationMissed, VerifyReport
from exporter.verify.run import verify_staged
from exporter.verify.selftest import SelfTest, record
from exporter.verify.selftest_file import read_selftest
from exporter.verify.spread import allowed, few
from exporter.verify.truth import Spill, Stored
from tests.tiny import save_tiny
from tests.verify.fakes import FakeSession, FakeTarget, MemoryModel, memory_model
from tests.verify.test_numbers import Table, table

SELFTEST = ".sparse-export/selftest.safetensors"
TIGHT = 1e-4


def test_bound_is_the_tolerance_or_twice_the_spread_up_to_ten_tolerances() -> None:
    spread = np.array([0.0, 4e-5, 1e-4, 1.0])
    assert allowed(TIGHT, spread).tolist() == pytest.approx([1e-4, 1e-4, 2e-4, 1e-3])
    assert few(1, 5) and few(7, 748) and not few(8, 748) and not few(2, 100)


def judged(tmp_path: Path, off: dict[int, float], spread: dict[int, float]) -> NumbersResult:
    """One prompt of 3 tokens, 7 rows; the engine's row r is off by `off[r]` of its peak."""
    rows = table()
    spill = Spill(tmp_path, 5)
    test = record(Table(rows), Prompts(((0, 0, 0),), 5, "random ids"), spill)
    if spread:
        known = np.zeros(test.starts()[-1], dtype=np.float32)
        known[list(spread)] = list(spread.values())
        test = replace(test, spread=known)
    engine = rows.copy()
    for r, error in off.items():
        engine[r, 0] += error * np.abs(rows[r]).max()
    found = check_numbers(Table(engine), test, spill, Tolerance(TIGHT))
    again = check_numbers(Table(engine), test, Stored(test), Tolerance(TIGHT))
    assert again.failures == found.failures and again.magnified == found.magnified
    spill.close()
    return found


def test_excused_and_listed(tmp_path: Path) -> None:
    found = judged(tmp_path, {4: 3e-4}, {4: 2e-4})
    assert found.failures == () and len(found.magnified) == 1 and found.doubtful == ()
    one = found.magnified[0]
    assert (one.prompt, one.position, one.phase) == (0, 4, "decode")
    assert (one.error, one.spread, one.allowed) == pytest.approx((3e-4, 2e-4, 4e-4), rel=1e-2)
    assert found.decode.max_rel == pytest.approx(3e-4, rel=1e-2)  # not hidden


@pytest.mark.parametrize(
    ("off", "spread", "words"),
    [
        ({4: 5e-4}, {4: 2e-4}, "decode: relative error of logits 0.0005, allowed 0.0004"),
        ({4: 5e-4}, {3: 2e-4}, "allowed 0.0001"),  # another position's spread
        ({4: 2e-3}, {4: 1.0}, "allowed 0.001"),  # ten times the tolerance, never more
        ({1: 3e-4, 4: 3e-4}, {1: 2e-4, 4: 2e-4}, "2 of 7 positions leave the tolerance"),
    ],
)
def test_not_excused(off: Any, spread: Any, words: str, tmp_path: Path) -> None:
    found = judged(tmp_path, off, spread)
    assert any(words in failure for failure in found.failures)


def test_who_may_ask(tmp_path: Path) -> None:
    assert judged(tmp_path, {4: 3e-4}, {}).doubtful == (0,)
    assert judged(tmp_path, {4: 3e-4}, {0: 1e-9}).doubtful == ()  # known already
    assert judged(tmp_path, {1: 3e-4, 4: 3e-4}, {}).doubtful == ()  # too many
    assert judged(tmp_path, {}, {}).doubtful == ()


PROMPT, ROW = 3, 4


class Off(FakeSession):
    """Adds 3e-4 of the peak to one logit, at one position of one prompt."""

    prefills = 0

    def __init__(self, inner: FakeSession, tokens: tuple[int, ...]) -> None:
        self.__dict__.update(inner.__dict__)
        self._tokens = tokens

    def prefill(self, tokens: Any, *, logits: str = "all") -> Any:
        rows = super().prefill(tokens, logits=logits)
        if tuple(tokens) == self._tokens and len(rows) > ROW:
            rows[ROW, int(rows[ROW].argmin())] += 3e-4 * np.abs(rows[ROW]).max()
        return rows


class Unsure(TorchReference):
    """A reference that says so of that position, and counts who asks."""

    asked: list[int]
    spread_there = 2e-4

    def spread(self, tokens: Any) -> NDArray[np.float64]:
        type(self).asked.append(len(tokens))
        out = super().spread(tokens)
        out[ROW] = self.spread_there
        return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MemoryModel:
    folder = tmp_path_factory.mktemp("spread")
    return memory_model(
        save_tiny("llama2", folder, sparsity=0.6, tied=True, max_position_embeddings=24)
    )


def run(model: MemoryModel, folder: Path, target: FakeTarget, there: float = 2e-4) -> VerifyReport:
    def opener(fused: Any) -> TorchReference:
        session: Any = open_reference(fused)
        session.__class__ = Unsure
        session.spread_there = there
        return session

    Unsure.asked = []
    folder.mkdir()
    target.lower(model, folder)
    return verify_staged(target, model, folder, reference_opener=opener)


def off_target(model: MemoryModel, tmp_path: Path) -> FakeTarget:
    run(model, tmp_path / "sound", FakeTarget())
    assert Unsure.asked == []  # a sound engine costs nothing more
    plain = read_selftest(tmp_path / "sound" / SELFTEST)
    assert plain.spread is None
    return FakeTarget(engine=lambda session: Off(session, plain.prompts.tokens[PROMPT]))


def test_from_end_to_end(model: MemoryModel, tmp_path: Path) -> None:
    report = run(model, tmp_path / "out", off_target(model, tmp_path))
    assert report.verdict.passed and report.numbers is not None
    assert [(m.prompt, m.position) for m in report.numbers.magnified] == [(PROMPT, ROW)]
    assert "the model itself magnifies float32's rounding: 1 (up to 0.0004" in report.summary
    kept: SelfTest = read_selftest(tmp_path / "out" / SELFTEST)
    lengths = [len(t) + kept.prompts.new_tokens - 1 for t in kept.prompts.tokens]
    assert Unsure.asked == [lengths[PROMPT]] and kept.spread is not None
    rows = kept.spread[kept.start(PROMPT) : kept.start(PROMPT + 1)]
    assert rows[ROW] == np.float32(2e-4) and (rows > 0).all()
    assert not kept.spread[: kept.start(PROMPT)].any()
    again = VerifyReport.model_validate(report.model_dump(mode="json"))
    assert again.model_dump_json() == report.model_dump_json()


def test_a_fault_is_not_excused_by_a_sound_model(model: MemoryModel, tmp_path: Path) -> None:
    target = off_target(model, tmp_path)
    with pytest.raises(VerificationMissed, match=r"relative error of logits 0\.0003"):
        run(model, tmp_path / "out", target, there=1e-6)
    assert len(Unsure.asked) == 1


def test_a_wrong_weight_is_not_asked_about(model: MemoryModel, tmp_path: Path) -> None:
    def half(arrays: Any) -> None:
        arrays["model.layers.1.mlp.down_proj.weight"] *= np.float32(0.5)

    with pytest.raises(VerificationMissed):
        run(model, tmp_path / "out", FakeTarget(state=half))
    assert Unsure.asked == []
