"""The two measurements of exporting, with children of known cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from bench import cli, commands
from bench.child import ChildRun
from bench.memory import MemoryResult, measure_memory, memory_table
from bench.optimum import runtime
from bench.peers import PeerResult, beside_optimum, peer_table
from exporter.errors import EngineUnfit, UsageError

MB = 1_000_000
Argv = Sequence[str]


def model(folder: Path, layers: int) -> Path:
    """A folder whose largest tensor holds 100 x 50 values, whatever its size."""
    folder.mkdir()
    tensors = {f"l{i}": np.zeros((20, 10), np.float16) for i in range(layers)}
    save_file({"embed": np.zeros((100, 50), np.float16), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [model(tmp_path / f"m{n}", n) for n in (1, 2, 4, 8)]


def lowering(peaks: Mapping[str, int]) -> object:
    """A runner: 50 MB for the baseline, the given peak for each model."""

    def run(argv: Argv) -> ChildRun:
        if "--lower-only" not in argv:
            return ChildRun(0, 0.1, 50 * MB, 50 * MB, "")
        peak = peaks[Path(argv[3]).name]
        return ChildRun(0, 2.0, peak, peak, "")

    return run


def lower(models: list[Path], peaks: list[int], **named: object) -> MemoryResult:
    by_name = {m.name: p for m, p in zip(models, peaks, strict=True)}
    return measure_memory(models, runner=lowering(by_name), **named)  # type: ignore[arg-type]


def test_growth_is_from_the_second_to_the_last(models: list[Path]) -> None:
    result = lower(models, [40_000_000, 50_000_000, 50_500_000, 51_000_000], repeats=2)
    assert result.growth == pytest.approx(0.02) and result.within_growth
    assert result.points[0].largest_tensor_bytes == 100 * 50 * 4
    assert result.points[3].weight_bytes == (100 * 50 + 8 * 200) * 2
    assert [len(p.seconds) for p in result.points] == [2] * 4
    assert result.bound_bytes == 50 * MB + 3 * 20_000
    assert not result.within_bound


def test_a_peak_under_the_bound_is_within(models: list[Path]) -> None:
    assert lower(models, [50_010_000] * 4).within_bound


def test_growth_of_five_percent_is_too_much(models: list[Path]) -> None:
    assert lower(models, [50, 100, 100, 105]).within_growth is False
    assert lower(models[:2], [50, 100]).growth is None


def test_a_failed_export_is_an_error_and_leaves_nothing(models: list[Path]) -> None:
    before = sorted(p.name for p in models[0].parent.iterdir())

    def run(argv: Argv) -> ChildRun:
        return ChildRun(3 if "--lower-only" in argv else 0, 1, MB, MB, "no space")

    with pytest.raises(EngineUnfit, match="no space"):
        measure_memory(models, runner=run)
    assert sorted(p.name for p in models[0].parent.iterdir()) == before
    with pytest.raises(UsageError):
        measure_memory([])


def test_memory_table_says_what_was_broken(models: list[Path]) -> None:
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(memory_table(lower(models, [10 * MB, 100 * MB, 100 * MB, 120 * MB])))
    console.file.close()
    text = console.export_text()
    assert "BROKEN" in text and "+20.0%" in text and "m8" in text


def exporting(calls: list[list[str]]) -> object:
    """A runner: ours 2 s and 100 MB, the peer 10 s and 500 MB; verified, one second more."""

    def run(argv: Argv, env: Mapping[str, str] | None) -> ChildRun:
        calls.append(list(argv))
        ours = "--target" in argv
        verified = "--lower-only" not in argv if ours else "-m" in argv
        out = Path(argv[argv.index("-o") + 1]) if ours else Path(argv[-1])
        out.mkdir()
        (out / "model.onnx").write_bytes(bytes(10))
        assert (env is None) == ours
        if ours:
            return ChildRun(0, 2.0 + verified, 100 * MB, 100 * MB, "")
        log = "The ONNX export succeeded with the warning: ..." if verified else ""
        return ChildRun(0, 10.0 + verified, 500 * MB, 500 * MB, log)

    return run


def peers(folder: Path, calls: list[list[str]], rounds: int = 4) -> PeerResult:
    run = exporting(calls)
    return beside_optimum(folder, rounds=rounds, runner=run, peer_python=Path("py"))  # type: ignore[arg-type]


def test_ratios_are_of_medians_with_and_without_verification(models: list[Path]) -> None:
    calls: list[list[str]] = []
    result = peers(models[0], calls)
    plain, verified = result.ratios
    assert (plain.time, plain.peak_rss, plain.verified) == (5.0, 5.0, False)
    assert verified.time == pytest.approx(11 / 3) and verified.verified
    assert result.reached and len(result.runs) == len(calls) == 16
    assert [r.tolerance_warning for r in result.runs if r.tool == "optimum-onnx"] == (
        [False] * 4 + [True] * 4
    )
    assert all(r.output_bytes == 10 for r in result.runs)
    assert sorted(p.name for p in models[0].parent.iterdir()) == ["m1", "m2", "m4", "m8"]


def test_tools_take_turns_in_balanced_order(models: list[Path]) -> None:
    tools = [r.tool for r in peers(models[0], []).runs]
    for i in range(0, 16, 4):  # two rounds
        assert {tuple(tools[i : i + 2]), tuple(tools[i + 2 : i + 4])} == {
            ("sparse-export", "optimum-onnx"),
            ("optimum-onnx", "sparse-export"),
        }


def test_peer_table_has_both_tools(models: list[Path]) -> None:
    table = peer_table(peers(models[0], [], rounds=1))
    assert table.row_count == 6


def test_a_failing_peer_is_an_error(models: list[Path]) -> None:
    def run(argv: Argv, env: Mapping[str, str] | None) -> ChildRun:
        return ChildRun(1, 1, MB, MB, "Traceback")

    with pytest.raises(EngineUnfit, match="Traceback"):
        beside_optimum(models[0], rounds=1, runner=run, peer_python=Path("py"))


def test_commands_write_json_and_end_with_the_verdict(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.memory
    import bench.peers

    slow = lower(models, [50, 100, 100, 200])
    monkeypatch.setattr(bench.memory, "measure_memory", lambda *a: slow)
    monkeypatch.setattr(bench.peers, "install", lambda progress: None)
    fast = peers(models[0], [], rounds=1)
    monkeypatch.setattr(bench.peers, "beside_optimum", lambda *a: fast)
    assert cli.run(["memory", "m", "--json", str(tmp_path / "m.json")]) == commands.Exit.REGRESSION
    assert cli.run(["optimum", "m", "--json", str(tmp_path / "o.json")]) == 0
    assert MemoryResult.model_validate_json((tmp_path / "m.json").read_text()) == slow
    assert json.loads((tmp_path / "o.json").read_text())["kind"] == "peers"


def test_lock_is_pinned_and_hashed_and_without_cuda() -> None:
    text = runtime.RUNTIME.lock.read_text()
    pins = [line.split(" ")[0] for line in text.splitlines() if line[:1].isalnum()]
    assert all("==" in pin for pin in pins) and "optimum-onnx==0.1.0" in pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert not [p for p in pins if p.startswith(("nvidia", "cuda", "triton"))]


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_other_machines_are_told_why(
    system: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.sys, "platform", system)
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    assert machine in (runtime.unfit() or "")
