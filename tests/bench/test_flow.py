"""Measure, compare, confirm, refuse, resume: on toy engines and virtual time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.comparison import RunResult
from bench.decide.rule import Rule
from bench.flow import compare_now, compare_results, compare_with, run_one
from bench.journal import read_lines
from bench.pairs import MOST_ROUNDS
from bench.readings import ProcessLine, Reading
from bench.workloads import decode, prefill
from exporter.errors import EngineUnfit, InputRefused, UsageError
from tests.bench.fleet import SMALL, Fleet, keep_at

Pair = tuple[Path, Path]


def slow_new(factor: float) -> Fleet:
    return Fleet({"sparse": lambda n: factor})


def test_equal_sides_pass(pair: Pair) -> None:
    found = compare_now(*pair, Fleet().how())
    assert found.verdict.status == "passed" and found.verdict.exit_code == 0
    assert [c.status for c in found.cells] == ["same"] * 3 and found.paired
    assert {c.metric for c in found.cells} == {"itl", "prefill", "e2e"}


def test_a_slower_side_is_measured_again_and_named(pair: Pair) -> None:
    fleet = slow_new(1.05)
    found = compare_now(*pair, fleet.how())
    assert found.verdict.exit_code == 1 and found.verdict.status == "regression"
    assert "decode-b1: +5.0% time" in found.verdict.reason
    again = [c.rerun.ratio for c in found.cells if c.rerun is not None]
    assert again == pytest.approx([1.05] * 3, rel=0.01)
    # Eight pairs for one workload, and Holm's three need no more; then eight for the re-run.
    assert fleet.opened.count("sparse") == 16
    assert {r.run for r in found.readings} == {0, 1}


def test_a_change_within_the_minimum_effect_is_none(pair: Pair) -> None:
    assert compare_now(*pair, slow_new(1.01).how()).verdict.status == "passed"


def test_a_faster_side_is_told_and_passes(pair: Pair) -> None:
    found = compare_now(*pair, slow_new(0.5).how())
    assert found.verdict.exit_code == 0 and {c.status for c in found.cells} == {"faster"}


def test_what_shows_once_is_not_a_regression(pair: Pair) -> None:
    fleet = Fleet({"sparse": lambda n: 1.1 if n < 8 else 1.0})
    found = compare_now(*pair, fleet.how())
    assert found.verdict.exit_code == 0 and found.verdict.status == "unconfirmed"
    assert "re-run" in found.verdict.reason


def test_noise_between_processes_is_undecided(pair: Pair) -> None:
    fleet = Fleet({"sparse": lambda n: (0.6, 1.9, 1.0, 1.5)[n % 4]})
    found = compare_now(*pair, fleet.how())
    assert found.verdict.exit_code == 4 and "too noisy" in found.verdict.reason


def test_more_processes_are_measured_only_while_it_is_wide(pair: Pair) -> None:
    settled, wild = Fleet(), Fleet({"sparse": lambda n: (0.9, 1.1)[n % 2]})
    for fleet, expected in ((settled, 8), (wild, 20)):
        how = fleet.how()
        compare_now(*pair, replace(how, plan=replace(how.plan, most=20)))
        assert fleet.opened.count("dense") == expected


def test_many_workloads_take_the_processes_that_holm_needs(pair: Pair) -> None:
    fleet = Fleet()
    workloads = tuple(prefill(8 + i) for i in range(12))
    how = fleet.how(workloads)
    compare_now(*pair, replace(how, plan=replace(how.plan, processes=6, most=20)))
    assert fleet.opened.count("dense") == 9


def test_what_a_session_cannot_run_is_left_out_with_its_reason(pair: Pair) -> None:
    found = compare_now(*pair, Fleet().how((decode(1, 16, 8), decode(4), prefill(2048))))
    assert found.left_out == {
        "decode-b4": "needs batch 4, the session takes 1",
        "prefill-2048": "needs 2048 tokens, the artefact takes 256",
    }
    assert len(found.cells) == 1 and found.verdict.exit_code == 0
    with pytest.raises(EngineUnfit, match="no workload"):
        compare_now(*pair, Fleet().how((decode(4),)))


def test_a_slow_pair_is_named_and_kept(pair: Pair) -> None:
    fleet = Fleet({"sparse": lambda n: 3.0 if n == 4 else 1 + n * 1e-3})
    cell = compare_now(*pair, fleet.how((decode(1, 16, 8),))).cells[0]
    assert cell.outliers == ["pair 5"] and cell.blocks == 8


def run(folder: Path, fleet: Fleet | None = None) -> RunResult:
    return run_one(folder, (fleet or Fleet()).how())


def test_a_run_has_every_figure_or_says_why_not(pair: Pair) -> None:
    found = run(pair[0])
    figures = {f.metric: f for f in found.workloads[0].figures}
    assert figures["ttft"].value == pytest.approx(0.040, rel=0.01)
    assert figures["tpot"].value == pytest.approx(0.005, rel=0.01)
    assert figures["decode_tokens_per_second"].value == pytest.approx(200, rel=0.01)
    assert figures["weight_bandwidth"].value == pytest.approx(100 * 200 * 1e-9, rel=0.01)
    assert figures["goodput"].why == "no objective was set"
    assert [p.value is None for p in figures["itl"].percentiles] == [False, False, False, False]
    assert [p.value is None for p in figures["ttft"].percentiles] == [False, False, True, True]
    assert len(found.processes) == 8 and found.side.selftest_error is not None


def test_goodput_counts_what_keeps_the_objective(pair: Pair) -> None:
    fleet = Fleet({"dense": lambda n: 1.0 if n % 2 else 3.0})
    good = run_one(pair[0], fleet.how((replace(decode(1, 16, 8), slo_ttft_ms=50.0),)))
    figure = next(f for f in good.workloads[0].figures if f.metric == "goodput")
    requests, seconds = 16, sum(r.e2e or 0 for r in good.readings)
    assert figure.value == pytest.approx(requests / 2 / seconds)


def test_results_of_before_are_compared_and_need_a_re_run(pair: Pair) -> None:
    base, slow = run(pair[0]), run(pair[1], slow_new(1.2))
    same = compare_results(base, run(pair[0]), Rule())
    assert same.verdict.exit_code == 0 and not same.paired
    once = compare_results(base, slow, Rule())
    assert once.verdict.exit_code == 4 and "not measured again" in once.verdict.reason
    twice = compare_results(base, slow, Rule(), again=run(pair[1], slow_new(1.2)))
    assert twice.verdict.exit_code == 1
    well = compare_results(base, slow, Rule(), again=run(pair[1]))
    assert well.verdict.status == "unconfirmed" and well.verdict.exit_code == 0


def test_an_artefact_against_a_result_is_confirmed_by_itself(pair: Pair) -> None:
    base, fleet = run(pair[0]), slow_new(1.2)
    found = compare_with(base, pair[1], fleet.how((decode(1, 99, 9),)))  # its own are not used
    assert found.verdict.exit_code == 1 and len(fleet.opened) == 16
    assert [c.workload for c in found.cells] == [w.name for w in SMALL]


def test_unlike_machines_are_refused_unless_forced(pair: Pair) -> None:
    base, new = run(pair[0]), run(pair[0])
    other = base.fingerprint.model_copy(update={"cpu": "Another CPU", "microcode": "0x1"})
    moved = base.model_copy(update={"fingerprint": other})
    with pytest.raises(EngineUnfit, match="machine-unlike.*Another CPU"):
        compare_results(moved, new, Rule())
    forced = compare_results(moved, new, Rule(), force=True)
    assert any("by force: cpu: Another CPU" in note for note in forced.notes)


def test_results_of_other_work_are_refused(pair: Pair) -> None:
    other = run_one(pair[0], Fleet().how((decode(1, 16, 9),)))
    with pytest.raises(UsageError, match="differ in workloads"):
        compare_results(run(pair[0]), other, Rule())


def test_an_interrupted_run_keeps_its_samples_and_goes_on(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with pytest.raises(KeyboardInterrupt):
        compare_now(*pair, Fleet(stop_at=7).how(keep=keep_at(path)))
    head, lines = read_lines(path)
    assert head["kind"] == "compare"
    assert sum(isinstance(line, ProcessLine) for line in lines) == 6
    assert sum(isinstance(line, Reading) for line in lines) == 3 * 2 * 2 * 3
    rest = Fleet()
    found = compare_now(*pair, rest.how(keep=keep_at(path, resume=True)))
    assert rest.opened.count("dense") == 5 and found.base.processes == 8
    assert len({(r.process, r.round, r.side, r.workload) for r in found.readings}) == 8 * 2 * 2 * 3
    again = Fleet()
    compare_now(*pair, again.how(keep=keep_at(path, resume=True)))
    assert again.opened == []


def test_a_process_that_was_cut_short_is_measured_anew(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    compare_now(*pair, Fleet().how(keep=keep_at(path)))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]) + lines[20][:30])  # killed in the middle of a line
    whole = 1  # 12 readings and 2 process lines a pair: one pair and six readings are left
    rest = Fleet()
    compare_now(*pair, rest.how(keep=keep_at(path, resume=True)))
    assert rest.opened.count("sparse") == 8 - whole


def test_samples_of_another_measurement_are_not_gone_on_from(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    run_one(pair[0], Fleet().how(keep=keep_at(path)))
    with pytest.raises(UsageError, match="another measurement: plan differ"):
        run_one(pair[0], Fleet().how((prefill(9),), keep=keep_at(path, resume=True)))
    path.write_text("{}\n")
    with pytest.raises(InputRefused, match="no head"):
        run_one(pair[0], Fleet().how(keep=keep_at(path, resume=True)))


def test_samples_nobody_asked_for_go_with_success_and_stay_without(
    pair: Pair, tmp_path: Path
) -> None:
    run_one(pair[0], Fleet().how())
    assert not list(tmp_path.glob("sparse-bench-*"))
    with pytest.raises(KeyboardInterrupt):
        run_one(pair[0], Fleet(stop_at=2).how())
    (left,) = tmp_path.glob("sparse-bench-run-*.jsonl")
    rest = Fleet()
    run_one(pair[0], rest.how(keep=keep_at(None, resume=True)))
    assert len(rest.opened) == 6 and not left.exists()


def test_no_path_reaches_a_result(pair: Pair) -> None:
    text = json.dumps(compare_now(*pair, Fleet().how()).model_dump(mode="json"))
    assert str(pair[0].parent) not in text


def test_short_readings_get_more_rounds_until_their_time_is_up(pair: Pair) -> None:
    fleet = Fleet()
    plan = replace(fleet.how((SMALL[0],)).plan, seconds=2.0)
    found = run_one(pair[0], fleet.how((SMALL[0],), plan=plan))
    seconds = 0.050 + 0.040 + 7 * 0.005  # settling, first token, seven more
    rounds = {r.round for r in found.readings if r.process == 0}
    assert rounds == set(range(len(rounds))) and len(rounds) % 2 == 0
    assert 2.0 <= seconds * len(rounds) < 2.0 + 2.5 * seconds
    endless = replace(plan, seconds=1e6)
    many = run_one(pair[0], fleet.how((SMALL[0],), plan=endless))
    assert {r.round for r in many.readings if r.process == 0} == set(range(MOST_ROUNDS))
    assert many.settings.seconds == 1e6


def test_rerun_does_not_check_the_same_bytes_again(pair: Pair) -> None:
    found = compare_now(*pair, slow_new(1.2).how((SMALL[0],)))
    assert found.verdict.status == "regression"
    tested = {(p.run, p.process) for p in found.processes if p.selftest is not None}
    assert tested == {(0, 0)} and {p.run for p in found.processes} == {0, 1}
