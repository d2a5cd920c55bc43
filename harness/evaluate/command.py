"""`sparse-tune eval`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from exporter.commands.terminal import TerminalListener, interruptible, print_json
from exporter.errors import UsageError
from exporter.store.jsonio import write_json
from harness.documents import FIELD
from harness.evaluate.protocol import Protocol
from harness.evaluate.run import evaluate_folder
from harness.evaluate.tasks.names import parse_tasks
from harness.evaluate.tasks.run import Asked, evaluate_tasks

TASKS_HELP = "Tasks, comma-separated: zero-shot, boolq, ..., mmlu, gsm8k, or folders of your own."


def eval_command(
    model: Annotated[
        Path, typer.Argument(help="Hugging Face folder, or an artefact of sparse-export.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help='Perplexity on text, JSON lines, a hub dataset or "builtin".'),
    ] = None,
    field: Annotated[str, typer.Option("--field", help="Text of a JSON line or a row.")] = FIELD,
    tasks: Annotated[str | None, typer.Option("--tasks", help=TASKS_HELP)] = None,
    task_data: Annotated[
        Path | None, typer.Option("--task-data", help="Folder of TASK/SPLIT.jsonl.")
    ] = None,
    length: Annotated[int, typer.Option("--length", help="Tokens of context.")] = 1024,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Tokens between windows; else the length.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=2, help="Tokens of the text to read; else all.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Examples; else each task's own number.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Rows of each task; else all.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Prompts at once, in torch.")] = 1,
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", help="Adapter folder; may be repeated.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Masks file; else the zeros are the mask.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder of the tokenizer; else MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file of the result.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Perplexity (--data): exp of the mean nats of a token, each scored once. Or tasks (--tasks),
    by lm-eval's definitions on local files.
    """
    if (data is None) == (tasks is None) or (tasks is None) != (task_data is None):
        raise UsageError(
            "usage", "not one of --data, and --tasks with --task-data",
            expected="--data FILE, or --tasks NAMES --task-data FOLDER",
        )  # fmt: skip
    with interruptible(), TerminalListener(Console(stderr=True)) as listener:
        listener.stage("evaluate")
        given: dict[str, Any] = {
            "adapters": adapter or (), "masks": masks, "tokenizer": tokenizer,
            "progress": listener.progress,
        }  # fmt: skip
        if tasks is not None and task_data is not None:
            asked = Asked(tuple(parse_tasks(tasks)), task_data, shots, limit, batch)
            scores = evaluate_tasks(model, asked, **given)
            record, shown = scores.record(), scores.table()
        else:
            done = evaluate_folder(
                model, data or "", Protocol(length, stride, tokens), field=field, **given
            )
            record, shown = done.record(), done.told()
    if output is not None:
        write_json(output, record)
    if as_json:
        print_json(record)
    else:
        Console(soft_wrap=isinstance(shown, str), highlight=False).print(shown)
