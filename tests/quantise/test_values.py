"""The table of quantised values, and the script that makes it for SmolLM2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.check.model import check_model
from exporter.report.values import ValuesReport, cells, values_html
from exporter.store.checkpoint import Checkpoint
from scripts import quantised
from tests.adapters.forge import factors, targeted, tensors_of, write_lora
from tests.tiny import save_tiny


def small_lora(folder: Path) -> str:
    """A dense delta, small beside the weights."""
    spec = check_model(Checkpoint.open(folder / "model")).spec
    found = factors(spec, targeted(spec, "q", "down"))
    small = {m: (a * np.float32(0.1), b * np.float32(0.1)) for m, (a, b) in found.items()}
    names = ["q_proj", "down_proj"]
    return str(write_lora(folder / "lora", tensors_of(small), target_modules=names))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("values")
    save_tiny("llama2", folder / "model", sparsity=0.6, seed=3, dtype="bfloat16")
    rng = np.random.default_rng(0)
    words = ("the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "that", "dog")
    (folder / "text.txt").write_text(" ".join(rng.choice(words, 1500)))
    lora = small_lora(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(quantised, "OUT", folder)
    patch.setattr(quantised, "ROOT", folder)
    amounts = "tokens=2048,held_out=1024,length=64"
    model, text = str(folder / "model"), str(folder / "text.txt")
    given = ["--sparse", model, "--adapter", lora, "--text", text, "--amounts", amounts]
    code = quantised.main(given)
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
    assert (report.adapters, report.policy) == (("lora",), "refit")
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
    assert names == {"model", "lora", "text.txt", "values.json", "values.html"}
