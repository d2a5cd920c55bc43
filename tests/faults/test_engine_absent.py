"""Traps of the engines: options it would answer wrongly, and a machine without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.cli import run
from tests.faults.asking import Ask


@pytest.fixture
def no_deepsparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which its environment was never made."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(home))
    return home


@pytest.mark.parametrize(
    "option",
    [
        "sequence_length=96",
        "sequence_length=0",
        "sequence_length=-64",
        "prefill_chunk=6",
        "prefill_chunk=0",
    ],
)
def test_options_at_which_deepsparse_errs_are_refused(
    option: str, single: Path, ask: Ask, no_deepsparse: Path
) -> None:
    """96 compiles and answers wrongly in DeepSparse 1.8.0, so nothing may reach it."""
    error = ask.refused(ask.copy(single), target=f"deepsparse,{option}", exit_code=2)
    assert error["code"] == "target-option"
    assert option.split("=")[0] in error["found"]


def test_export_without_the_engine_says_what_is_not_known(
    single: Path, ask: Ask, no_deepsparse: Path
) -> None:
    report = ask.published(ask.copy(single), target="deepsparse")
    verification = report["verification"]
    assert verification["engine"].startswith("onnxruntime")
    assert "deepsparse cannot run here" in verification["fallback"]
    assert "not installed" in verification["fallback"]
    assert "are not known" in verification["fallback"]
    assert verification["not_checked"] == ["the artefact in deepsparse itself"]
    assert "in place of the target's own engine" in verification["summary"]
    page = (ask.out / ".sparse-export" / "report.html").read_text(encoding="utf-8")
    assert "in place of the target" in page
    assert list(no_deepsparse.iterdir()) == [], "nothing is installed unasked"
    ask.capsys.readouterr()
    assert run(["verify", str(ask.out), "--json"]) == 0
    assert "deepsparse cannot run here" in json.loads(ask.capsys.readouterr().out)["fallback"]


def test_a_person_reads_it_too(single: Path, ask: Ask, no_deepsparse: Path) -> None:
    model = ask.copy(single)
    ask.capsys.readouterr()
    assert run([str(model), "--target", "deepsparse", "-o", str(ask.root / "out")]) == 0
    said = " ".join(ask.capsys.readouterr().out.split())
    assert "verified by" in said and "onnxruntime" in said
    assert "deepsparse cannot run here" in said


def test_targets_say_why(no_deepsparse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["deepsparse"]["available"] is False
    assert "sparse-export targets install deepsparse" in rows["deepsparse"]["reason"]
    assert rows["deepsparse"]["runtime"]["version"] is None
    assert rows["onnxruntime"]["available"] is True


def test_plan_says_it_before_anything_is_done(single: Path, ask: Ask, no_deepsparse: Path) -> None:
    code, plan, _ = ask.run(ask.copy(single), "--plan", target="deepsparse")
    assert code == 0
    assert plan["runtime"]["available"] is False
    assert "not installed" in plan["runtime"]["reason"]
    assert list(ask.out.parent.iterdir()) == []
