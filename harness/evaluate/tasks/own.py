"""A task of the user's, `DIR/TASK/task.yaml`: lm-eval's form, less all that could run code.

lm-eval's own reader imports what `!function` names, lets a metric be fetched as a program, and
renders templates in a jinja2 that reaches Python's internals. Here a safe loader reads the file,
every key is known and typed, and templates run in jinja2's sandbox (`sandbox.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.calibration.source import read_text
from exporter.errors import InputRefused

FILE = "task.yaml"
MAX_BYTES = 1_000_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metric(_Strict):
    """One of lm-eval's that are computed here, from the answers alone."""

    metric: Literal[
        "acc", "acc_norm", "exact_match", "word_perplexity", "byte_perplexity", "bits_per_byte"
    ]
    aggregation: Literal["mean", "weighted_perplexity", "bits_per_byte"] | None = None
    higher_is_better: bool | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    regexes_to_ignore: list[str] | None = None


class FilterStep(_Strict):
    """One step from the generated text to the answer."""

    function: Literal["regex", "take_first", "remove_whitespace", "lowercase", "uppercase"]
    regex_pattern: str | None = None
    group_select: int | None = None
    fallback: str | None = None


class Filter(_Strict):
    """Steps with a name; each filter gives a row of results."""

    name: str
    filter: list[FilterStep]


class Generation(_Strict):
    """Greedy only: an artefact's session does not sample."""

    until: list[str]
    max_gen_toks: int = Field(default=256, ge=1)
    do_sample: Literal[False] = False


class Fewshot(_Strict):
    """Where examples come from, where not from a split."""

    sampler: Literal["default", "first_n"] | None = None
    samples: list[dict[str, Any]] | None = None


class OwnTask(_Strict):
    """The keys of lm-eval's task file that are taken."""

    task: str | None = None
    output_type: Literal[
        "multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until"
    ]
    test_split: str = "test"
    fewshot_split: str | None = None
    fewshot_config: Fewshot | None = None
    num_fewshot: int = Field(default=0, ge=0)
    description: str = ""
    doc_to_text: str
    doc_to_target: str | int
    doc_to_choice: str | list[str] | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    metric_list: list[Metric]
    generation_kwargs: Generation | None = None
    filter_list: list[Filter] | None = None
    metadata: dict[str, str | int | float] = Field(default_factory=dict)


def read_own(folder: Path, name: str) -> dict[str, Any] | None:
    """The configuration of task `name` for lm-eval; None where the folder defines none.

    Raises:
        InputRefused: `task-invalid`, naming the key; `limit-exceeded`, `input-*`.
    """
    path = folder / name / FILE
    if not path.exists():
        return None
    where = f"{name}/{FILE}"
    value = _load(read_text(path, MAX_BYTES), where)
    try:
        task = OwnTask.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise _invalid(where, f"{key}: {first['msg']}", _expected(first["loc"])) from error
    if task.task not in (None, name):
        raise _invalid(where, f"task: {task.task!r}", f"{name!r}, as the folder is called")
    if task.output_type == "multiple_choice" and task.doc_to_choice is None:
        raise _invalid(where, "no doc_to_choice", "the choices of a multiple_choice task")
    if task.output_type == "generate_until" and task.generation_kwargs is None:
        raise _invalid(where, "no generation_kwargs", "until: [...] of a generate_until task")
    return {**task.model_dump(exclude_none=True), "task": name}


def _load(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())[:300]
        if "!function" in said or "!!python" in said or "tag:yaml.org,2002:python" in said:
            raise _invalid(where, "a tag that runs code", "plain YAML, no !function") from error
        raise _invalid(where, said, "YAML") from error


def _expected(place: tuple[int | str, ...]) -> str:
    if len(place) == 1:
        return f"the keys {', '.join(sorted(OwnTask.model_fields))}"
    return "what docs/reference/evaluation.md lists"


def _invalid(file: str, found: str, expected: str) -> InputRefused:
    return InputRefused("task-invalid", found, expected=expected, file=file)
