"""Every row that will be scored, rendered once before the run: text, choices, and which is right.

lm-eval looks at the first row only, and counts a row whose answer is not among the choices as
wrong, with a warning; a score over such rows says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from jinja2 import TemplateError

from exporter.errors import InputRefused

# What a template, or a function of lm-eval's task, raises on a row of another form.
ROW_ERRORS = (
    TemplateError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    SyntaxError,  # ast.literal_eval of a template's text
)


def check_rows(task: Any, limit: int | None) -> None:
    """Render `limit` rows of `task` (None: all), and all rows that examples are drawn from.

    Raises:
        InputRefused: `data-invalid`, naming the row (from 1).
    """
    _check(task, islice(task.eval_docs, limit), task.config.test_split)
    if task.config.num_fewshot and task.config.fewshot_split is not None:
        _check(task, task.fewshot_docs(), task.config.fewshot_split)


def _check(task: Any, docs: Iterable[Any], split: str) -> None:
    for number, doc in enumerate(docs, start=1):
        where = f"{task.config.task}/{split}, row {number}"
        try:
            wrong = _wrong(task, doc)
        except ROW_ERRORS as error:
            raise row_error(where, error) from error
        if wrong:
            raise _invalid(where, wrong)


def _wrong(task: Any, doc: Any) -> str | None:
    """What is not as it must be."""
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    if text is None or target is None:
        return "the question or the answer is null"
    if task.OUTPUT_TYPE != "multiple_choice":
        return None if str(target) else "the answer is empty"
    choices = task.doc_to_choice(doc)
    if not isinstance(choices, list) or not choices or not all(_is_text(c) for c in choices):
        return f"choices {choices!r}, not texts"
    # With choices in the context (WinoGrande) the text is the index of the right one.
    gold = text if task.multiple_input else target
    return None if _among(gold, choices) else f"the answer {gold!r} is none of {len(choices)}"


def _is_text(choice: Any) -> bool:
    return isinstance(choice, str) and bool(choice)


def _among(gold: Any, choices: list[str]) -> bool:
    if isinstance(gold, list):
        return bool(gold) and all(_among(g, choices) for g in gold)
    if isinstance(gold, int):
        return 0 <= gold < len(choices)
    return gold in choices


def row_error(where: str, error: Exception) -> InputRefused:
    """A row that a task cannot render."""
    return _invalid(where, f"{type(error).__name__}: {error}")


def _invalid(where: str, found: str) -> InputRefused:
    return InputRefused(
        "data-invalid",
        found[:400],
        expected="the fields that the task reads, as docs/reference/evaluation.md lists them",
        file=where,
        hint="Correct the row, or the task's file.",
    )
