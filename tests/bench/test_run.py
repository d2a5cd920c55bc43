"""`ab` against sessions of known speed: the truth is recovered, and wrong outputs stop it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.artefacts import Artefact
from bench.run import AbOptions, ab
from exporter.errors import EngineUnfit, InputRefused, SparseExportError, UsageError
from tests.bench.fakes import Measure, Opener, Speed, ToySession, digest, toy_artefact


def test_known_times_are_recovered(measured: Measure) -> None:
    result = measured(rounds=8)
    dense, sparse = result.dense, result.sparse
    assert dense.ttft_seconds.median == pytest.approx(0.080)
    assert sparse.ttft_seconds.median == pytest.approx(0.040)
    assert dense.tpot_seconds.median == pytest.approx(0.010)
    assert dense.decode_tokens_per_second.median == pytest.approx(100)
    assert sparse.decode_tokens_per_second.median == pytest.approx(200)
    assert dense.prefill_tokens_per_second.median == pytest.approx(16 / 0.080)
    assert result.speedup.decode.median == pytest.approx(2.0)
    assert result.speedup.prefill.median == pytest.approx(2.0)
    assert result.speedup.ttft.median == pytest.approx(2.0)


def test_each_round_runs_both_sides_and_all_samples_are_kept(
    measured: Measure, opener: Opener
) -> None:
    result = measured(rounds=7, warmup_rounds=2)
    assert len(result.rounds) == 7
    assert all(len(r.dense.token_seconds) == 8 for r in result.rounds)
    for session in opener.sessions.values():
        assert session.generated == 2 + 2 + 7  # self-test prompts, warm-up, rounds
        assert session.closed == 1
    assert abs(sum(1 if r.order == "AB" else -1 for r in result.rounds)) == 1


def test_sides_run_in_the_order_that_is_recorded(pair: tuple[Path, Path], opener: Opener) -> None:
    seen: list[str] = []
    for name, session in opener.sessions.items():
        original = session.generate

        def generate(
            tokens: object, n: int, name: str = name, original: object = original
        ) -> object:
            if n == 8:
                seen.append(name)
            return original(tokens, n)  # type: ignore[operator]

        session.generate = generate  # type: ignore[method-assign, assignment]
    options = AbOptions(rounds=6, warmup_rounds=0, prompt_tokens=16, new_tokens=8, processes=1)
    result = ab(*pair, options, opener=opener, clock=opener.time.clock)
    names = {"A": "dense", "B": "sparse"}
    assert seen == [names[side] for r in result.rounds for side in r.order]


def test_a_slow_round_is_named_and_kept(measured: Measure, opener: Opener) -> None:
    jitter = {i: 1 + 0.01 * (i % 3) for i in range(40)}
    opener.sessions["sparse"].speed = Speed(0.040, 0.005, {**jitter, 6: 5.0})
    result = measured(rounds=9, warmup_rounds=2)
    assert result.speedup.decode.outliers == [2]  # two prompts and two warm-ups come before
    assert any("decode: outlying round 3; kept" in note for note in result.notes)
    assert result.speedup.decode.n == 9
    assert result.speedup.decode.median == pytest.approx(2.0, rel=0.03)


def test_artefact_facts_are_recorded_without_paths(
    measured: Measure, pair: tuple[Path, Path]
) -> None:
    result = measured(rounds=6)
    assert result.sparse.label == "sparse" and result.sparse.artefact_bytes == 1000
    assert result.dense.manifest_sha256 == digest(pair[0])
    assert (result.dense.peak_rss_bytes, result.dense.load_seconds) == (1000, 0.5)
    assert result.dense.selftest.positions == 3 + 2 + 2 * 3
    assert result.dense.selftest.greedy_tokens == 8
    assert str(pair[0].parent) not in result.model_dump_json()


def test_wrong_outputs_stop_before_any_timing(measured: Measure, opener: Opener) -> None:
    opener.sessions["sparse"].wrong = 0.5
    with pytest.raises(SparseExportError) as caught:
        measured(rounds=6)
    assert caught.value.code == "outputs-differ" and caught.value.file == "sparse"
    assert opener.sessions["dense"].generated == 2  # its self-test, and no round
    assert all(s.closed == 1 for s in opener.sessions.values())


def test_an_engine_that_dies_closes_the_other(pair: tuple[Path, Path], opener: Opener) -> None:
    def open_one(artefact: object, threads: int | None) -> ToySession:
        if opened:
            raise EngineUnfit("engine-crashed", "gone")
        opened.append(opener.sessions[artefact.label])  # type: ignore[attr-defined]
        return opened[0]

    opened: list[ToySession] = []
    with pytest.raises(EngineUnfit):
        ab(*pair, AbOptions(), opener=open_one)  # type: ignore[arg-type]
    assert [session.closed for session in opened] == [1]


def test_a_session_with_broken_times_is_refused(measured: Measure, opener: Opener) -> None:
    opener.sessions["dense"].speed = Speed(0.08, 0.0)  # decode without time
    with pytest.raises(EngineUnfit, match="engine-refused"):
        measured(rounds=6)


def test_a_workload_that_is_too_long_is_refused(pair: tuple[Path, Path], opener: Opener) -> None:
    with pytest.raises(UsageError, match="at most 256"):
        ab(*pair, AbOptions(prompt_tokens=250, new_tokens=7), opener=opener)


def test_two_targets_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = toy_artefact(tmp_path / "other", "another-engine")
    with pytest.raises(UsageError, match="two artefacts of one target"):
        ab(pair[0], other, AbOptions())


def test_a_folder_without_manifest_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="input-missing"):
        ab(pair[0], tmp_path / "nothing", AbOptions())


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"warmup_rounds": -1}])
def test_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        AbOptions(**wrong)


def test_a_vocabulary_of_another_size_is_refused(
    measured: Measure, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opener.sessions["sparse"]
    original = session.prefill

    def wider(tokens: tuple[int, ...], *, logits: str = "all") -> object:
        rows = original(tokens, logits=logits)
        return rows if logits == "all" else rows[:, :-1]

    monkeypatch.setattr(session, "prefill", wider)
    with pytest.raises(UsageError, match="two artefacts of one model"):
        measured(rounds=6)


def test_which_side_opens_first_is_balanced_over_processes(
    pair: tuple[Path, Path], opener: Opener
) -> None:
    seen: list[str] = []

    def recording(artefact: Artefact, threads: int | None) -> ToySession:
        seen.append(artefact.label)
        return opener(artefact, threads)

    options = AbOptions(rounds=12, warmup_rounds=0, prompt_tokens=16, new_tokens=8, processes=6)
    ab(*pair, options, opener=recording, clock=opener.time.clock)  # type: ignore[arg-type]
    firsts = seen[0::2][:6]
    assert sorted(firsts) == [*["dense"] * 3, *["sparse"] * 3]
    assert all({a, b} == {"dense", "sparse"} for a, b in zip(seen[0::2], seen[1::2], strict=True))
