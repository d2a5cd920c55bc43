"""Cells, sizes, table and page of a comparison; two cells are run for real."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace

import pytest

from exporter.check.model import check_model
from exporter.errors import UsageError
from exporter.store.checkpoint import Checkpoint
from harness.cli import run
from harness.compare.matrix import Row, cells, s2ft_share
from harness.compare.page import page
from harness.compare.table import lines, markdown
from scripts.tune_results import scored_so
from tests.tiny import save_tiny


def result(row, seed, score, sparsity="0.7", history=()):
    cost = {"seconds": {"training": 2.0}, "seconds_per_step": 0.1, "peak_rss_bytes": 5e6}
    return {
        "row": row, "sparsity": sparsity, "seed": seed, "perplexity": score, "trainable": 10,
        "cost": {**cost, "optimiser_bytes": 80}, "history": list(history), "norms": {},
    }  # fmt: skip


def test_rows_and_cells():
    row = Row.parse("losa:rates=uniform:pruner=sparsegpt")
    assert (row.method, row.pruner, row.settings) == ("losa", "sparsegpt", ("rates=uniform",))
    todo = cells("oneshot,losa", "0.5,2:4", "0,1")
    assert [(c.row.label, c.sparsity, c.seed) for c in todo[:5]] == [
        ("oneshot", "0.5", 0), ("losa", "0.5", 0), ("oneshot", "2:4", 0), ("losa", "2:4", 0),
        ("oneshot", "0.5", 1),
    ]  # fmt: skip
    for bad in (
        ("lisa2", "0.5", "0"),
        ("losa", "5", "0"),
        ("losa", "0.5", "0,0"),
        ("", "0.5", "0"),
    ):
        with pytest.raises(UsageError):
            cells(*bad)


def test_equal_parameters(tmp_path):
    spec = check_model(Checkpoint.open(save_tiny("llama2", tmp_path / "m"))).spec
    lora = 4 * sum(li.in_features + li.out_features for li in spec.linears())
    share = s2ft_share(spec, 4)
    whole = sum(
        li.in_features * li.out_features for li in spec.linears() if li.role in ("o", "down")
    )
    assert share * whole == pytest.approx(lora, rel=1e-3)
    assert Row.parse("losa").sized(spec, 4) == ("rank=4",)
    assert Row.parse("losa:rank=6").sized(spec, 4) == ("rank=6",)


def test_differences_are_paired_by_seed():
    results = [
        result("a", 0, 10.0),
        result("a", 1, 20.0),
        result("b", 1, 21.5),
        result("b", 0, 12.0),
    ]
    first, second = lines(results, "a")
    assert (first.perplexity, first.difference) == (15.0, None)
    assert second.difference == pytest.approx(1.75)
    assert second.difference_sd == pytest.approx(0.25 * 2**0.5)
    assert "+1.750 (sd 0.354)" in markdown([first, second])
    assert lines(results[:1], "a")[0].record()["sd"] is None
    alone = lines([results[0], results[3]], "a")
    assert "| +2.000 |" in markdown(alone)  # one seed has no sd


def test_a_dense_score_of_other_options_is_not_taken(tmp_path):
    text, record = tmp_path / "test.txt", tmp_path / "dense.json"
    text.write_text("some text")
    options = Namespace(held_out=str(text), eval_length="512", eval_tokens="4096")
    assert not scored_so(record, options)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    record.write_text(json.dumps({"data_sha256": digest, "length": 512, "most_tokens": 4096}))
    assert scored_so(record, options)
    for change in ({"eval_length": "256"}, {"eval_tokens": "8192"}):
        assert not scored_so(record, Namespace(**{**vars(options), **change}))
    text.write_text("another text")
    assert not scored_so(record, options)


def test_the_page_holds_table_and_plots():
    entry = {"iteration": 1, "rates": [0.6, 0.8], "sizes": {"m.0.q": 3, "m.1.q": 5}}
    found = [result("losa", 0, 9.0, history=[entry]), result("<b>", 0, 8.0)]
    text = page(lines(found, "losa"), found, "t")
    assert text.count("<svg") == 3 and "&lt;b&gt;" in text and "No run of this" in text
    assert "<script" not in text and "http-equiv" not in text


@pytest.mark.slow
def test_two_cells_run_and_are_not_run_again(tmp_path, capsys):
    model = save_tiny("llama2", tmp_path / "m")
    words = [
        "compare", str(model), "--methods", "oneshot,losa:iterations=2", "--data", "builtin",
        "--held-out", "builtin", "--seeds", "0", "--steps", "4", "--length", "16", "--batch", "2",
        "--eval-length", "32", "--eval-tokens", "256", "-o", str(tmp_path / "c"),
    ]  # fmt: skip
    assert run(words) == 0
    assert "cell 2 of 2" in capsys.readouterr().out
    table = json.loads((tmp_path / "c" / "table.json").read_text())
    assert [line["row"] for line in table["lines"]] == ["oneshot", "losa:iterations=2"]
    assert run(words) == 0
    assert "cell 2" not in capsys.readouterr().out
    assert "<svg" in (tmp_path / "c" / "report.html").read_text()
