"""A team's CI, told with mock engines in real processes: each outcome, its code and its words."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from junitparser import Failure, JUnitXml

from backends.mock.make import make_mock
from backends.mock.spec import MockSpec
from bench import cli
from bench.journal import read_lines

pytestmark = pytest.mark.slow
CI = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "ci"
# Steps that are slept through, not worked: another program may have the processor meanwhile.
BASE = MockSpec(ttft_ms=10, tpot_ms=20, density=0.3, process_noise=0.01)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of a run that fails stay in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts of every kind, the suite of the docs, and the base's result."""
    root = tmp_path_factory.mktemp("ci")
    made = {
        "base": BASE,
        "same": BASE,
        "spoiled": BASE.model_copy(update={"density": 0.6}),
        "wrong": BASE.model_copy(update={"wrong": 0.5, "tpot_ms": 0.1}),
        "missing": BASE.model_copy(update={"fail": "missing"}),
        "crash": BASE.model_copy(update={"fail": "crash"}),
        "noisy": BASE.model_copy(update={"process_noise": 0.8}),
    }
    for name, spec in made.items():
        make_mock(root / name, spec)
    shutil.copy(CI / "bench.toml", root)
    suite = ["--suite", str(root / "bench.toml"), "--json", str(root / "base.json")]
    # Samples lie in the current folder while it runs: not in one that another worker shares.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert cli.run(["run", str(root / "base"), *suite]) == 0
    return root


def compare(story: Path, new: str, *more: str) -> int:
    """Against the base's result; few processes, since the differences are wide."""
    limits = ["--processes", "6", "--max-processes", "6", "--min-effect", "0.2"]
    return cli.run(["compare", str(story / "base.json"), str(story / new), *limits, *more])


def test_0_the_same_artefact_passes(story: Path) -> None:
    assert compare(story, "same", "--allow-inconclusive") == 0


def test_1_spoiled_masks_fail_with_a_reason(story: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    out = ["--out", f"junit={junit}", "--out", f"annotations={tmp_path / 'a.txt'}"]
    assert compare(story, "spoiled", *out) == 1
    suite = next(iter(JUnitXml.fromfile(str(junit))))
    failures = [r for case in suite for r in case.result]
    assert failures and all(isinstance(f, Failure) for f in failures)
    assert re.search(r"\+\d\d\.\d% time .* slower, in the re-run too", failures[0].message or "")
    assert "::error title=sparse-bench::decode-b1: +" in (tmp_path / "a.txt").read_text()


def test_2_an_artefact_that_is_not_there(story: Path) -> None:
    assert compare(story, "none") == 2


@pytest.mark.parametrize("broken", ["missing", "crash"])
def test_3_an_engine_that_is_missing_or_dies(
    story: Path, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(story, broken) == 3
    assert "engine-" in capsys.readouterr().err


def test_3_an_unlike_machine_is_refused(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = json.loads((story / "base.json").read_text())
    raw["fingerprint"]["cpu"] = "A faster CPU"
    (tmp_path / "other.json").write_text(json.dumps(raw))
    code = cli.run(["compare", str(tmp_path / "other.json"), str(story / "same")])
    assert code == 3 and "machine-unlike" in capsys.readouterr().err


def test_4_noise_is_admitted(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(story, "noisy") == 4
    assert "too noisy to decide" in " ".join(capsys.readouterr().out.split())


def test_5_fast_but_wrong(story: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(story, "wrong") == 5
    assert "outputs-differ" in capsys.readouterr().err


def lines_of(name: str) -> list[str]:
    """The command lines of a workflow that call sparse-bench."""
    raw = yaml.safe_load((CI / name).read_text())
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
        elif isinstance(node, str) and node.startswith("sparse-bench "):
            found.append(node)

    walk(raw)
    return found


@pytest.mark.parametrize(("name", "count"), [("github.yml", 1), ("gitlab.yml", 2)])
def test_the_lines_of_the_workflows_run(story: Path, tmp_path: Path, name: str, count: int) -> None:
    shutil.copy(CI / "bench.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "sparse-bench"
    program.write_text(f"#!{sys.executable}\nfrom bench.cli import main\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    root = str(Path(cli.__file__).resolve().parents[1])
    env = {**os.environ, "PATH": path, "PYTHONPATH": root}
    env |= {"BASE": str(story / "base"), "NEW": str(story / "spoiled")}
    lines = lines_of(name)
    assert len(lines) == count
    codes = [
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=False).returncode
        for line in lines
    ]
    assert codes == [0] * (count - 1) + [1]
    assert JUnitXml.fromfile(str(tmp_path / "junit.xml")).failures > 0


def test_a_killed_run_leaves_samples_and_goes_on(story: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    line = ["run", str(story / "base"), "--suite", str(story / "bench.toml"),
            "--samples", str(samples), "--resume"]  # fmt: skip
    argv = [sys.executable, "-c", "from bench.cli import main; main()", *line]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if samples.exists() and samples.read_text().count('"line":"process"') >= 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [x for x in read_lines(samples)[1] if x.line == "process"]
    assert 2 <= len(kept) < 6
    assert cli.run(line) == 0
    after = [x for x in read_lines(samples)[1] if x.line == "process"]
    assert len(after) == 6 and after[: len(kept)] == kept
