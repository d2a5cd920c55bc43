"""Exit codes of sparse-bench, one test each, and the files that `ab` writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest

from bench import cli
from bench.flow import Keep
from bench.results import AbResult, Interval, ab_schema
from bench.run import AbOptions, ab
from bench.verdict import Exit, exit_of, judge
from exporter.errors import EngineUnfit, InputRefused, UsageError, VerificationFailed
from tests.bench.fakes import Measure, Opener, Speed

SHORT = ["--prompt-tokens", "16", "--new-tokens", "8", "--rounds", "8"]


@pytest.fixture
def command(pair: tuple[Path, Path], opener: Opener, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`ab DENSE SPARSE` on the toy sessions."""

    def on_toys(
        dense: Path, sparse: Path, options: AbOptions, progress: object, keep: Keep
    ) -> AbResult:
        return ab(dense, sparse, options, opener=opener, clock=opener.time.clock, keep=keep)

    monkeypatch.setattr(cli, "ab", on_toys)
    return ["ab", *map(str, pair), *SHORT]


def test_0_without_a_wish(command: list[str]) -> None:
    assert cli.run(command) == Exit.FINE == 0


def test_0_where_the_wish_is_met(command: list[str]) -> None:
    assert cli.run([*command, "--min-speedup", "1.9"]) == 0


def test_1_where_the_whole_interval_misses_the_wish(command: list[str]) -> None:
    assert cli.run([*command, "--min-speedup", "2.5"]) == Exit.REGRESSION == 1


def test_2_on_wrong_use(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ab", "only-one"]) == Exit.USAGE == 2
    assert cli.run([*command, "--prompt-tokens", "999"]) == 2
    assert "at most 256" in capsys.readouterr().err


def test_2_where_a_folder_is_no_artefact(command: list[str], tmp_path: Path) -> None:
    assert cli.run(["ab", command[1], str(tmp_path / "none")]) == 2


def test_3_where_the_engine_fails(
    command: list[str], opener: Opener, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(tokens: object, n: int) -> object:
        raise EngineUnfit("engine-crashed", "killed by SIGSEGV")

    opener.sessions["sparse"].generate = crash  # type: ignore[method-assign, assignment]
    assert cli.run(command) == Exit.NOT_MEASURED == 3
    assert "SIGSEGV" in capsys.readouterr().err


def test_4_where_noise_hides_the_answer(command: list[str], opener: Opener) -> None:
    wild = {i: 0.5 + (i * 7 % 10) / 5 for i in range(40)}
    opener.sessions["sparse"].speed = Speed(0.04, 0.005, wild)
    one = ["--processes", "1", "--min-speedup", "1.4"]
    assert cli.run([*command, *one]) == Exit.UNDECIDED == 4


def test_4_where_the_rounds_are_too_few(command: list[str]) -> None:
    assert cli.run([*command, "--rounds", "3", "--min-speedup", "1.0"]) == 4


def test_5_where_outputs_differ(command: list[str], opener: Opener) -> None:
    opener.sessions["dense"].wrong = 1.0
    assert cli.run(command) == Exit.OUTPUTS_DIFFER == 5


def test_130_where_interrupted(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "ab", interrupt)
    assert cli.run(command) == Exit.INTERRUPTED == 130


def test_errors_map_to_exit_codes() -> None:
    assert exit_of(VerificationFailed("verify-numbers", "x")) == 5
    assert exit_of(VerificationFailed("manifest-invalid", "x")) == 3
    assert exit_of(UsageError("usage", "x")) == exit_of(InputRefused("input-missing", "x")) == 2


@pytest.mark.parametrize(
    ("low", "high", "wish", "status"),
    [
        (1.2, 1.4, 1.2, "passed"),
        (1.2, 1.4, 1.4, "undecided"),
        (1.2, 1.4, 1.3, "undecided"),
        (1.2, 1.4, 1.41, "regression"),
        (1.2, 1.4, None, "no-gate"),
    ],
)
def test_verdict_is_of_the_whole_interval(
    low: float, high: float, wish: float | None, status: str
) -> None:
    decode = Interval(
        median=1.3, low=low, high=high, confidence=0.95, n=9, supported=True, outliers=[]
    )
    assert judge(decode, wish).status == status


def test_json_validates_against_the_schema_and_reads_back(
    command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "ab.json"
    assert cli.run([*command, "--json", str(out)]) == 0
    raw = json.loads(out.read_text())
    jsonschema.Draft202012Validator(ab_schema()).validate(raw)
    assert len(raw["rounds"]) == 8 and raw["schema_version"] == 1
    assert AbResult.model_validate(raw).model_dump(mode="json") == raw
    raw["rounds"][0]["order"] = "AA"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(ab_schema()).validate(raw)


def test_schema_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == ab_schema()


def test_table_names_every_figure(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.run(command) == 0
    out = capsys.readouterr().out
    wanted = ("decode, tokens/s", "prefill, tokens/s", "TTFT, ms", "TPOT, ms", "peak RSS, MB")
    for figure in (*wanted, "artefact, MB", "ops run by the engine", "load, s", "2.000x"):
        assert figure in out


def test_unwritable_result_is_a_typed_error(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run([*command, "--json", str(tmp_path / "file" / "ab.json")]) == 2
    assert "output-failed" in capsys.readouterr().err


def test_html_without_matplotlib_is_refused_before_measuring(
    command: list[str],
    opener: Opener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.run([*command, "--html", str(tmp_path / "r.html")]) == 2
    assert "sparse-export[report]" in capsys.readouterr().err
    assert opener.sessions["dense"].calls == []


def test_missing_scipy_is_a_typed_error(measured: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UsageError, match="report"):
        measured(rounds=6)
