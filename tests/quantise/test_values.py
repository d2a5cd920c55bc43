"""The table of quantised values, and the script that makes it for SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.report.values import ValuesReport, cells, values_html
from scripts import quantised
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    save_tiny("llama2", folder / "model", sparsity=0.6, seed=3, dtype="bfloat16")
    rng = np.random.default_rng(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "looked",
        "at",
        "the",
        "dog",
        "that",
        "lay",
        "in",
        "the",
        "sun",
    ]
    (folder / "text.txt").write_text(" ".join(rng.choice(words, 1500)))
    patch = pytest.MonkeyPatch()
    patch.setattr(quantised, "OUT", folder)
    patch.setattr(quantised, "ROOT", folder)
    amounts = "tokens=2048,held_out=1024,length=64"
    code = quantised.main(
        [
            "--sparse",
            str(folder / "model"),
            "--text",
            str(folder / "text.txt"),
            "--amounts",
            amounts,
        ]
    )
    patch.undo()
    return {"folder": folder, "code": code}


def report_of(folder: Path) -> ValuesReport:
    return ValuesReport.model_validate_json((folder / "values.json").read_text())


def test_every_kind_is_measured(made: dict[str, Any]) -> None:
    report = report_of(made["folder"])
    assert [row.label for row in report.rows] == [
        "int8 round",
        "fp8 round",
        "int4 g128 round",
        "int4 g128 gptq",
    ]
    assert report.stored == "bf16" and report.linears == 14
    assert (report.observed_tokens, report.held_out_tokens, report.window) == (2048, 1024, 64)
    errors = [row.error for row in report.rows]
    assert 0 < errors[0] < errors[1] < errors[3] < errors[2], "int8, fp8, int4 gptq, int4"
    assert made["code"] == (0 if quantised.feedback_wins(report) else 1)


def test_the_page_and_the_table_show_all(made: dict[str, Any]) -> None:
    report = report_of(made["folder"])
    page = values_html(report)
    assert (made["folder"] / "values.html").read_text() == page
    for row in cells(report):
        assert all(cell in page for cell in row)


def test_nothing_is_left_behind(made: dict[str, Any]) -> None:
    names = {p.name for p in made["folder"].iterdir()}
    assert names == {"model", "text.txt", "values.json", "values.html"}
