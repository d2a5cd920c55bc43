"""From names and a folder of rows to lm-eval's task objects, every row looked at before a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import InputRefused, UsageError
from harness.evaluate.tasks.check import ROW_ERRORS, check_rows, row_error
from harness.evaluate.tasks.names import FOLDERS, MMLU, NAMED, known, mmlu_subjects
from harness.evaluate.tasks.own import FILE, read_own
from harness.evaluate.tasks.rows import DataFile, find_file, read_rows

SEED = 1234  # of the few-shot examples: lm-eval's default


@dataclass
class Loaded:
    """What is scored."""

    tasks: dict[str, Any] = field(default_factory=dict[str, Any])  # lm-eval's, by name
    groups: dict[str, Any] = field(default_factory=dict[str, Any])  # those with a mean of theirs
    files: list[DataFile] = field(default_factory=list[DataFile])


@dataclass(frozen=True)
class _Splits:
    """Which rows a task is scored on, and where its examples come from."""

    scored: str
    examples: str | None  # a split; None where none are needed, or the file holds them
    shots: int


def load_tasks(names: Sequence[str], data: Path, shots: int | None, limit: int | None) -> Loaded:
    """The tasks, on the rows of `data`; `limit` rows of each.

    Must run inside `sandboxed`.

    Args:
        names: of lm-eval's tasks, `mmlu` for its 57 subjects, or of folders with a `task.yaml`.
        data: `data/TASK/SPLIT.jsonl` (or .json, .parquet).
        shots: examples before each question; None: the task's own number.
        limit: rows scored of each task; None: all.

    Raises:
        UsageError: `usage` for a name that is unknown.
        InputRefused: `input-missing` naming the file, `data-invalid` naming the row,
            `task-invalid`, `json-invalid`.
    """
    manager = _manager()
    loaded = Loaded()
    for name in names:
        before = len(loaded.files)
        spec = _spec(manager, name, data, shots, loaded.files)
        try:
            built = manager.load([spec])
        except ROW_ERRORS as error:  # lm-eval renders the first row while it builds
            read = loaded.files[before:]
            raise row_error(read[0].file if len(read) == 1 else name, error) from error
        loaded.tasks |= built["tasks"]
        if name == MMLU:
            loaded.groups[MMLU] = _pooled(built["tasks"])
    for task in loaded.tasks.values():
        task.set_fewshot_seed(seed=SEED)
        check_rows(task, limit)
    return loaded


def _spec(
    manager: Any, name: str, data: Path, shots: int | None, files: list[DataFile]
) -> dict[str, Any]:
    """One name as lm-eval's manager takes it."""
    own = read_own(data, name)
    subjects = mmlu_subjects(manager.all_subtasks)
    if own is not None:
        if name in manager.task_index:
            raise InputRefused(
                "task-invalid", f"{name!r} is a task of lm-eval's", expected="another name",
                file=f"{name}/{FILE}",
            )  # fmt: skip
        return {**own, **_override(name, own, data, shots, files)}
    if name not in (*NAMED, *subjects, MMLU):
        raise _unknown(name)
    members = subjects if name == MMLU else [name]
    # A group is how lm-eval changes keys of tasks that it knows.
    return {
        "group": f"_{name}",
        "task": [
            _override(member, manager.task_index[member].cfg, data, shots, files)
            for member in members
        ],
    }


def _pooled(tasks: dict[str, Any]) -> Any:
    """MMLU: the mean over all its rows, as lm-eval's own group has it."""
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    group = Group(MMLU, aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=True)])
    for task in tasks.values():
        group.add(task)
    return group


def _manager() -> Any:
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=[root / folder for folder in FOLDERS]
    )


def _override(
    name: str, config: dict[str, Any], data: Path, shots: int | None, files: list[DataFile]
) -> dict[str, Any]:
    """The keys that put local rows in place of a dataset of the hub."""
    splits = _splits(name, config, shots)
    tables: dict[str, Any] = {}
    for split in dict.fromkeys(s for s in (splits.scored, splits.examples) if s is not None):
        tables[split], read = read_rows(find_file(data, name, split), name)
        files.append(read)
    return {
        "task": name,
        "custom_dataset": _giving(tables),
        "dataset_path": None,
        "dataset_name": None,
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": splits.scored,
        "fewshot_split": splits.examples,
        "num_fewshot": splits.shots,
    }


def _splits(name: str, config: dict[str, Any], shots: int | None) -> _Splits:
    """lm-eval's rule: the test split is scored, else validation; examples are of training rows."""
    wanted = (config.get("num_fewshot") or 0) if shots is None else shots
    test, validation = config.get("test_split"), config.get("validation_split")
    scored = test or validation
    if not isinstance(scored, str):
        raise _unknown(name)
    inside = (config.get("fewshot_config") or {}).get("samples") is not None
    if not wanted or inside:
        return _Splits(scored, None, wanted)
    examples = config.get("fewshot_split") or config.get("training_split")
    if examples is None and test and validation:
        examples = validation
    if examples is None:
        raise UsageError(
            "usage", f"{wanted} examples for {name}, which has no split for them",
            expected="--shots 0, or a fewshot_split in the task's file",
        )  # fmt: skip
    return _Splits(scored, examples, wanted)


def _giving(tables: dict[str, Any]) -> Callable[..., Any]:
    """What lm-eval calls for a dataset: tables that are here already."""

    def give(**_: Any) -> Any:
        return tables

    return give


def _unknown(name: str) -> UsageError:
    return UsageError(
        "usage", f"no task {name!r}", expected=known(), hint=f"Or write {name}/{FILE}."
    )
