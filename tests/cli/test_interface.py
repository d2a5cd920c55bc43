"""The interface that others script against, and what the compiler must never load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import run
from exporter.report.inspect import InspectReport


def json_of(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_targets_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    rows = json_of(capsys)
    assert {"deepsparse", "onnxruntime"} <= {row["name"] for row in rows}
    for row in rows:
        assert set(row) == {"name", "available", "reason", "runtime"}
        assert set(row["runtime"]) == {"engine", "version", "python", "window"}
        assert isinstance(row["available"], bool)
        assert row["reason"]


def test_targets_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_install_of_an_unknown_engine() -> None:
    assert run(["targets", "install", "no-such-engine"]) == 2


def test_inspect_as_json(sparse_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(sparse_model), "--json"]) == 0
    report = json_of(capsys)
    assert {"linears", "sparsity", "pattern"} <= set(report["totals"])
    assert report["totals"]["linears"] == len(report["linears"]) == 14
    assert report["totals"]["sparsity"] == pytest.approx(0.7, abs=0.02)
    InspectReport.model_validate(report)


def test_inspect_as_a_page(sparse_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run(["inspect", str(sparse_model), "--html", str(page)]) == 0
    assert "<svg" in page.read_text(encoding="utf-8")


def test_plan_reads_headers_and_writes_nothing(
    sparse_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [str(sparse_model), "--target", "onnxruntime", "-o", str(out), "--plan", "--json"]
    assert run(command) == 0
    plan = json_of(capsys)
    assert plan["files"]["model.data"] > 0
    assert plan["runtime"]["available"] is True
    assert not any(t["changed"] for t in plan["tensors"])
    assert not out.exists()


def test_plan_bounds_what_the_export_writes(
    sparse_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [str(sparse_model), "--target", "onnxruntime", "-o", str(out)]
    assert run([*command, "--plan", "--json"]) == 0
    plan = json_of(capsys)
    assert run(command) == 0
    for name, nbytes in plan["files"].items():
        assert (out / name).stat().st_size == pytest.approx(nbytes, rel=0.2, abs=4096)


def test_the_compiler_starts_without_torch_and_without_a_socket() -> None:
    code = """
import sys
def refuse(event, args):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise SystemExit(f"network: {event}")
sys.addaudithook(refuse)
import exporter.cli
from exporter.registry import load_target
load_target("onnxruntime")
heavy = {"torch", "transformers"} & set(sys.modules)
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    for command in ("export", "inspect", "policies", "verify", "targets"):
        assert command in said
