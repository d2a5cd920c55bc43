"""`sparse-export policies`: one row for each policy, and what the rows must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import run
from exporter.report.policies import PoliciesReport

OPTIONS = ":tokens=1024,held-out=512,length=64"


@pytest.fixture(scope="module")
def made(
    model: Path, lora: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PoliciesReport, str]:
    folder = tmp_path_factory.mktemp("policies")
    work = folder / "work"
    work.mkdir()
    command = ["policies", str(model), "--adapter", str(lora), "--calibration", f"{text}{OPTIONS}"]
    files = ["--json-file", str(folder / "a.json"), "--html", str(folder / "a.html")]
    assert run([*command, *files, "--work", str(work)]) == 0
    assert list(work.iterdir()) == []
    report = PoliciesReport.model_validate_json((folder / "a.json").read_text())
    return report, (folder / "a.html").read_text()


def test_rows(made: tuple[PoliciesReport, str]) -> None:
    report, _ = made
    rows: dict[str, Any] = {r.policy: r for r in report.rows}
    assert list(rows) == ["mask", "refit", "reprune", "separate", "densify"]
    assert not any(r.impossible for r in report.rows)
    assert rows["refit"].error < rows["mask"].error
    for policy in ("mask", "refit", "reprune", "separate"):
        assert rows[policy].sparsity == pytest.approx(report.sparsity, abs=1e-9)
    assert rows["densify"].sparsity < report.sparsity - 0.2
    for policy in ("separate", "densify"):
        assert rows[policy].perplexity == pytest.approx(report.perplexity_unmerged, rel=1e-5)
        assert rows[policy].norm_lost == 0.0
    assert rows["separate"].branches == 8
    assert rows["reprune"].positions_moved > 0
    assert rows["refit"].norm_lost > rows["mask"].norm_lost > 0
    assert report.linears_lossy == 8
    assert report.perplexity_base != report.perplexity_unmerged


def test_page(made: tuple[PoliciesReport, str]) -> None:
    report, page = made
    assert page.count("<rect") == 7
    for row in report.rows:
        assert f"<td>{row.policy}</td>" in page
    assert "<script" not in page and "http" not in page


def test_the_terminal_shows_the_table(
    model: Path, lora: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["policies", str(model), "--adapter", str(lora), "--calibration", f"{text}{OPTIONS}"]
    assert run([*command, "--policy", "mask"]) == 0
    said = capsys.readouterr().out
    assert "mask" in said and "(unmerged)" in said and "refit" not in said
    assert run([*command, "--policy", "hope"]) == 2


def test_what_cannot_be_had_is_told(
    model: Path, lora: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`exact` is impossible for a dense delta on a sparse base."""
    command = ["policies", str(model), "--adapter", str(lora), "--calibration", f"{text}{OPTIONS}"]
    assert run([*command, "--policy", "exact", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["perplexity"] is None and "not possible" in row["impossible"]
