"""Two toy artefacts, dense and sparse, and the benchmark's readers turned to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.results import AbResult
from bench.run import AbOptions, ab
from tests.bench.fakes import (
    Measure,
    Opener,
    Speed,
    ToySession,
    VirtualTime,
    load_toy_target,
    read_toy_manifest,
    toy_artefact,
    toy_selftest,
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Folders "dense" and "sparse"; their self-test is the toy's."""
    monkeypatch.chdir(tmp_path)  # samples of a run that fails stay in the current folder
    monkeypatch.setattr("bench.artefacts.read_manifest", read_toy_manifest)
    monkeypatch.setattr("bench.artefacts.load_target", load_toy_target)
    monkeypatch.setattr("bench.correct.read_selftest", lambda path: toy_selftest())
    return toy_artefact(tmp_path / "dense"), toy_artefact(tmp_path / "sparse")


@pytest.fixture
def opener() -> Opener:
    """Dense: TTFT 80 ms, TPOT 10 ms; sparse: 40 ms and 5 ms."""
    time = VirtualTime()
    dense = ToySession(time, Speed(0.080, 0.010))
    sparse = ToySession(time, Speed(0.040, 0.005))
    return Opener(time, {"dense": dense, "sparse": sparse})


@pytest.fixture
def measured(pair: tuple[Path, Path], opener: Opener) -> Measure:
    """Run `ab` on the pair with some options."""

    def run(**options: object) -> AbResult:
        options = {"processes": 1, **options}
        chosen = AbOptions(prompt_tokens=16, new_tokens=8, **options)  # type: ignore[arg-type]
        return ab(*pair, chosen, opener=opener, clock=opener.time.clock)

    return run
