"""Every form of a result, read back by what reads it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import jsonschema
import pytest
from junitparser import Error, Failure, JUnitXml, Skipped

from bench import cli
from bench.comparison import CompareResult, schemas
from bench.flow import compare_now, run_one
from bench.journal import Line
from bench.load import read_result, read_run
from bench.outputs import KINDS, Outputs
from bench.readings import ProcessLine, Reading
from bench.render.result_plot import result_plots_svg
from bench.render.rows import rows
from bench.results import ab_schema
from bench.run import AbOptions, ab
from bench.suite import suite_schema
from bench.workloads import decode, prefill
from exporter.errors import InputRefused, UsageError
from tests.bench.fleet import SMALL, Fleet
from tests.bench.test_render import OUTSIDE

Pair = tuple[Path, Path]


@pytest.fixture
def slower(pair: Pair) -> CompareResult:
    """One workload slower, one not run."""
    fleet = Fleet({"sparse": lambda n: 1.1})
    how = fleet.how((*SMALL, decode(4)), title="a|b <script>")
    return compare_now(*pair, how)


def write_all(result: object, folder: Path) -> dict[str, str]:
    Outputs([], folder, {}).write(result)  # type: ignore[arg-type]
    return {kind: (folder / name).read_text() for kind, name in KINDS.items()}


def test_json_fits_its_schema_and_reads_back(slower: CompareResult, tmp_path: Path) -> None:
    text = write_all(slower, tmp_path)["json"]
    jsonschema.Draft202012Validator(schemas()["compare"]).validate(json.loads(text))
    assert read_result(tmp_path / "result.json") == slower
    with pytest.raises(UsageError, match="a result of `compare`"):
        read_run(tmp_path / "result.json")


def test_a_run_and_an_ab_fit_theirs(pair: Pair, tmp_path: Path) -> None:
    one = run_one(pair[0], Fleet().how())
    fleet = Fleet()
    two = ab(
        *pair, AbOptions(prompt_tokens=16, new_tokens=8, more=SMALL), opener=fleet,
        clock=fleet.time.clock,
    )  # fmt: skip
    for result, schema in ((one, schemas()["run"]), (two, ab_schema())):
        texts = write_all(result, tmp_path)
        jsonschema.Draft202012Validator(schema).validate(json.loads(texts["json"]))
        assert read_result(tmp_path / "result.json") == result
        assert all(texts.values())
    assert two.comparison is not None and len(two.comparison.cells) == 4


def test_samples_are_lines_of_json(slower: CompareResult, tmp_path: Path) -> None:
    found: list[Line] = []
    for line in write_all(slower, tmp_path)["jsonl"].splitlines():
        raw = json.loads(line)
        kind = {"reading": Reading, "process": ProcessLine}[raw["line"]]
        found.append(kind.model_validate(raw))
    assert found == [*slower.readings, *slower.processes]


def test_csv_has_a_row_a_figure_and_says_what_is_missing(
    slower: CompareResult, tmp_path: Path
) -> None:
    rows = list(csv.DictReader(io.StringIO(write_all(slower, tmp_path)["csv"], newline="")))
    tpot = [r for r in rows if r["workload"] == "decode-b1" and r["metric"] == "tpot"]
    assert [r["side"] for r in tpot] == ["base", "new"]
    assert float(tpot[1]["value"]) / float(tpot[0]["value"]) == pytest.approx(1.1, rel=0.01)
    missing = [r for r in rows if r["metric"] == "energy_per_token"]
    assert all((r["value"] == "") == bool(r["note"]) for r in missing)
    few = next(r for r in rows if r["metric"] == "ttft_p99")
    assert few["value"] == "" and few["note"] == "16 values are too few"


def test_junit_is_read_by_a_parser(slower: CompareResult, tmp_path: Path) -> None:
    write_all(slower, tmp_path)
    suite = next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml"))))
    results = {case.name: [type(r) for r in case.result] for case in suite}
    assert results["decode-b1"] == [Failure] and results["decode-b4"] == [Skipped]
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (4, 3, 0, 1)


def test_junit_calls_noise_an_error(pair: Pair, tmp_path: Path) -> None:
    fleet = Fleet({"sparse": lambda n: (0.6, 1.9, 1.0, 1.5)[n % 4]})
    write_all(compare_now(*pair, fleet.how((prefill(9),))), tmp_path)
    suite = next(iter(JUnitXml.fromfile(str(tmp_path / "junit.xml"))))
    assert [type(r) for case in suite for r in case.result] == [Error]


def test_markdown_tables_are_square_and_escaped(slower: CompareResult, tmp_path: Path) -> None:
    text = write_all(slower, tmp_path)["markdown"]
    assert "**regression**" in text and "<script>" not in text
    for block in re.split(r"\n\n", text):
        if block.startswith("| "):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1


def test_annotations_are_workflow_commands(slower: CompareResult, tmp_path: Path) -> None:
    lines = write_all(slower, tmp_path)["annotations"].splitlines()
    assert all(re.fullmatch(r"::(error|warning|notice) title=sparse-bench::.+", x) for x in lines)
    assert sum(x.startswith("::error") for x in lines) == 4
    assert "%25" in lines[0] and "% " not in lines[0]


def test_benchmark_list_has_what_the_action_reads(slower: CompareResult, tmp_path: Path) -> None:
    raw = json.loads(write_all(slower, tmp_path)["benchmark"])
    assert raw and len({entry["name"] for entry in raw}) == len(raw)
    for entry in raw:
        assert set(entry) == {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float) and entry["unit"] == "s"


def test_html_holds_its_plots_and_nothing_from_outside(
    slower: CompareResult, pair: Pair, tmp_path: Path
) -> None:
    page = write_all(slower, tmp_path)["html"]
    assert page.count("<svg") == 1 and not OUTSIDE.search(page)
    for text in ("regression", "decode-b1", "p (Holm)", "not run: needs batch 4", "ITL"):
        assert text in page
    one = write_all(run_one(pair[0], Fleet().how()), tmp_path)["html"]
    assert one.count("<svg") == 1 and not OUTSIDE.search(one)


def test_roofline_has_the_machines_own_line_where_it_was_measured(pair: Pair) -> None:
    result = run_one(pair[0], Fleet().how((decode(1, 16, 8),)))
    unknown = result.fingerprint.model_copy(update={"read_bytes_per_second": None})
    ceiling = result.fingerprint.model_copy(update={"read_bytes_per_second": 1e10})
    plots = [
        result_plots_svg(result.model_copy(update={"fingerprint": each}))
        for each in (unknown, ceiling)
    ]
    assert plots[0].count("<path") < plots[1].count("<path")


def test_bytes_that_the_engine_does_not_tell_are_not_made_up(pair: Pair) -> None:
    result = run_one(pair[0], Fleet().how((decode(1, 16, 8),)))
    silent = result.side.model_copy(update={"weight_bytes": 0})
    found = {row.metric: row for row in rows(result.model_copy(update={"side": silent}))}
    told = {row.metric: row for row in rows(result)}
    row = found["weights_per_token"]
    assert row.value is None and row.note == "the engine does not tell"
    assert told["weights_per_token"].value == result.side.weight_bytes > 0


def test_wrong_outputs_are_refused_before_measuring(tmp_path: Path) -> None:
    for wrong in ("pdf=x", "json", "json="):
        with pytest.raises(UsageError, match="KIND=FILE"):
            Outputs([wrong], None, {})


def test_standard_output_takes_a_form(
    slower: CompareResult, capsys: pytest.CaptureFixture[str]
) -> None:
    Outputs(["annotations=-"], None, {}).write(slower)
    assert capsys.readouterr().out.startswith("::error")


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "nothing"}', '{"kind": "run"}'])
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputRefused, match="json-invalid"):
        read_result(tmp_path / "x.json")


def test_schemas_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, schema in (*schemas().items(), ("suite", suite_schema())):
        assert cli.run(["schema", kind]) == 0
        assert json.loads(capsys.readouterr().out) == schema
        jsonschema.Draft202012Validator.check_schema(schema)
    assert cli.run(["schema", "none"]) == 2
