"""`sparse-tune` as a user runs it: exit codes, messages, and what lies there afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.cli import run
from harness.prune.run import MASKS
from tests.tiny import save_tiny

FAST = ["--length", "24", "--batch", "2", "--steps", "3"]


@pytest.fixture
def base(tmp_path):
    return save_tiny("smollm2", tmp_path / "m")


def test_prune_then_train_on_its_masks(tmp_path, base, capsys):
    out = tmp_path / "pruned"
    assert run(["prune", str(base), "--sparsity", "2:4", "--length", "24", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "14 linears, 50.00% zeros" in said
    assert str(out / MASKS) in said
    masks = ["--masks", str(out / MASKS)]
    train = ["train", str(out), "--method", "losa", *masks, *FAST, "-o", str(tmp_path / "a")]
    assert run(train) == 0
    assert "step    1 of 3  loss" in capsys.readouterr().out
    assert (tmp_path / "a" / "losa_config.json").is_file()


def test_rates_and_correlations_are_printed(tmp_path, base, capsys):
    words = ["prune", str(base), "--sparsity", "0.6", "--length", "16", "--samples", "4"]
    rates = ["--rates", "rmi", "--delta", "0.1", "--compare", "owl"]
    assert run([*words, *rates, "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "rank correlation of owl with rmi: Spearman" in said
    assert "zeros by block: 0." in said


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["prune", "{base}", "--sparsity", "70", "-o", "{out}"], 2, "--sparsity 70"),
        (["prune", "{base}", "--sparsity", "0.5"], 2, "--output"),
        (["prune", "{base}/none", "--sparsity", "0.5", "-o", "{out}"], 3, "input-missing"),
        (["prune", "{base}", "--sparsity", "0.5", "-o", "{base}/in"], 2, "output-inside-input"),
        (["train", "{base}", "--method", "qlora", "-o", "{out}"], 2, "qlora"),
        (["train", "{base}", "--method", "lora", "--data", "no.txt", "-o", "{out}"], 3, "no.txt"),
        (
            ["train", "{base}", "--method", "losa", *FAST, "--lr", "1e30", "-o", "{out}"],
            1,
            "training-failed",
        ),
    ],
)
def test_faults_have_exit_codes_and_leave_nothing(tmp_path, base, capsys, command, code, said):
    places = {"base": base, "out": tmp_path / "out"}
    assert run([word.format(**places) for word in command]) == code
    assert said in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_help_comes_without_torch():
    code = (
        "import sys, harness.cli as c; c.run(['--help']); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'slow help'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prune" in done.stdout
