"""Run the cells of a comparison, each in a process of its own; finished ones are not run again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from exporter.check.model import check_model
from exporter.errors import VerificationFailed
from exporter.store.checkpoint import Checkpoint
from exporter.store.jsonio import read_json, write_json
from harness.compare.matrix import ONESHOT, Cell
from harness.prune.run import MASKS

Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What all cells share."""

    data: str
    held_out: str
    steps: int
    rank: int
    length: int
    batch: int
    lr: float
    samples: int
    eval_length: int
    eval_tokens: int | None


def run_cells(
    model: Path, out: Path, todo: Sequence[Cell], budget: Budget, say: Say
) -> list[dict[str, Any]]:
    """Results of all cells, in their order; a cell's is `out/cells/NAME/config.json`.

    Raises:
        VerificationFailed: `training-failed` where a cell's process ends with an error; what is
            finished stays, and the same command goes on from there.
        UsageError: `usage` where `out` is of another comparison.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    spec = check_model(Checkpoint.open(model)).spec
    for number, cell in enumerate(todo, start=1):
        folder = out / "cells" / cell.name
        done = folder / "config.json"
        if not done.is_file():
            say(f"cell {number} of {len(todo)}: {cell.name}")
            _run_cell(model, folder, cell, cell.row.sized(spec, budget.rank), budget)
        found.append(cast(dict[str, Any], read_json(done)))
        if found[-1]["budget"] != asdict(budget):
            raise VerificationFailed(
                "training-failed", "a finished cell has another budget",
                expected="the options of the first run", file=cell.name,
                hint="Name another output, or give the same options.",
            )  # fmt: skip
    return found


def _run_cell(
    model: Path, folder: Path, cell: Cell, settings: Sequence[str], budget: Budget
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trained = folder / "out"
    common = ["--sparsity", cell.sparsity, "--samples", str(budget.samples), "--seed"]
    common += [str(cell.seed), "--length", str(budget.length), "-o", str(trained)]
    if cell.row.method == ONESHOT:
        given = ["prune", str(model), "--method", cell.row.pruner, "--data", budget.data]
        _tool([*given, *common, "--force"], cell)
    elif not trained.exists():
        _tool([*_train_words(model, cell, settings, budget), *common, *_resume(trained)], cell)
    score = folder / "score.json"
    scored = trained / "base" if (trained / "base").is_dir() else trained
    adapter = ["--adapter", str(trained)] if scored != trained else []
    masks = scored / MASKS
    given_masks = ["--masks", str(masks)] if masks.is_file() else []
    words = ["eval", str(scored), *adapter, *given_masks, "--data", budget.held_out]
    words += ["-o", str(score)]
    words += ["--length", str(budget.eval_length)]
    if budget.eval_tokens is not None:
        words += ["--tokens", str(budget.eval_tokens)]
    score.unlink(missing_ok=True)
    _tool(words, cell)
    result = _result(cell, trained, score, budget)
    for part in ("base", "model.safetensors", "masks"):  # the bulk; settings and figures stay
        _drop(trained / part)
    write_json(folder / "config.json", result)


def _train_words(model: Path, cell: Cell, settings: Sequence[str], budget: Budget) -> list[str]:
    words = ["train", str(model), "--method", cell.row.method, "--pruner", cell.row.pruner]
    words += ["--data", budget.data, "--calibration", budget.data, "--steps", str(budget.steps)]
    words += ["--batch", str(budget.batch), "--lr", str(budget.lr), "--save-every", "50"]
    for text in settings:
        words += ["--set", text]
    return words


def _resume(trained: Path) -> list[str]:
    recipe = trained.with_name(trained.name + ".work") / "recipe.json"
    return ["--resume"] if recipe.is_file() else []


def _tool(words: list[str], cell: Cell) -> None:
    code = "import sys; from harness.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise VerificationFailed(
            "training-failed",
            f"sparse-tune {words[0]} ended with {done.returncode}: {done.stderr.strip()[-600:]}",
            expected="a run without an error",
            file=cell.name,
            hint="Mend it and give the same command: what is finished is kept.",
        )


def _result(cell: Cell, trained: Path, score: Path, budget: Budget) -> dict[str, Any]:
    def maybe(path: Path) -> dict[str, Any]:
        return cast(dict[str, Any], read_json(path)) if path.is_file() else {}

    record, cost = maybe(trained / "train.json"), maybe(trained / "cost.json")
    return {
        "schema": 1,
        "row": cell.row.label,
        "method": cell.row.method,
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "budget": asdict(budget),
        "perplexity": maybe(score)["perplexity"],
        "score": maybe(score),
        "trainable": record.get("trainable", 0),
        "history": record.get("history", []),
        "norms": record.get("norms", {}),
        "losses": record.get("losses", []),
        "settings": record.get("settings", {}),
        "data": record.get("data", {}),
        "cost": cost,
    }


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
