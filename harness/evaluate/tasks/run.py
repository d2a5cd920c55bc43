"""Scores of tasks of a folder: a Hugging Face model, one with adapters, or an exported artefact."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from exporter.contract import Progress
from exporter.errors import UsageError
from harness.evaluate.artefact import is_artefact, opened, require_bare
from harness.evaluate.tasks.limits import MAX_NEW, Watch
from harness.evaluate.tasks.result import Scores, rows_of
from harness.hf import load_tokenizer


@dataclass(frozen=True)
class Asked:
    """What is scored, and on what."""

    tasks: tuple[str, ...]
    data: Path  # DIR of DIR/TASK/SPLIT.jsonl
    shots: int | None = None  # None: each task's own number
    limit: int | None = None  # rows of each task; None: all
    batch: int = 1  # sequences at once, of a torch model


def evaluate_tasks(
    folder: Path,
    asked: Asked,
    *,
    adapters: Sequence[Path] = (),
    masks: Path | None = None,
    tokenizer: Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score `folder` on tasks, by lm-eval's definitions on local rows. Nothing is downloaded.

    Args:
        folder: a Hugging Face folder (float32, transformers), or an artefact that `sparse-export`
            published (its own engine).
        asked: tasks and rows.
        adapters: added to a Hugging Face folder; nothing of them is dropped.
        masks: masks file of a Hugging Face folder; else its zeros are the mask.
        tokenizer: folder of the tokenizer, where it is not `folder`.
        progress: told after each forward.

    Raises:
        InputRefused: what the model's, rows' and adapter's readers refuse; `task-invalid`.
        UsageError: `usage` for unknown tasks, answers longer than the model reads, adapters on an
            artefact, or lm-eval missing.
        EngineUnfit: what opening an artefact can raise.
        VerificationFailed: `values-not-finite`.
    """
    require_lm_eval()
    from lm_eval.evaluator import evaluate

    from harness.evaluate.tasks.build import load_tasks
    from harness.evaluate.tasks.sandbox import sandboxed

    with sandboxed(), _quiet():
        loaded = load_tasks(asked.tasks, asked.data, asked.shots, asked.limit)
        words = load_tokenizer(tokenizer or folder)
        with _model(folder, adapters, masks, words, asked.batch, progress) as (lm, watch, engine):
            _require_room(loaded.tasks.values(), watch)
            # Its bootstrap starts processes, for metrics that are not taken here.
            found: Any = evaluate(
                lm, {"tasks": loaded.tasks, "groups": loaded.groups, "group_map": {}},
                limit=asked.limit, log_samples=False, bootstrap_iters=1,
            )  # fmt: skip
    return Scores(
        rows=rows_of(found),
        files=tuple(loaded.files),
        limit=asked.limit,
        cut=watch.cut,
        model=folder.resolve().name,
        engine=engine,
        versions={name: version(name) for name in ("lm_eval", "datasets", "transformers")},
    )


def require_lm_eval() -> None:
    """Refuse where the library is missing.

    Raises:
        UsageError: `usage`, with the command that installs it.
    """
    try:
        import lm_eval
    except ImportError:
        raise UsageError(
            "usage", "lm-eval is not installed", expected="the libraries of the extra `tune`",
            hint='pip install "sparse-export[tune]"',
        ) from None  # fmt: skip
    del lm_eval


@contextmanager
def _model(
    folder: Path,
    adapters: Sequence[Path],
    masks: Path | None,
    words: Any,
    batch: int,
    progress: Progress | None,
) -> Generator[tuple[Any, Watch, dict[str, str]]]:
    require_bare(folder, adapters, masks)
    if is_artefact(folder):
        from harness.evaluate.tasks.session_lm import SessionLM

        with opened(folder) as session:
            watch, facts = Watch(session.max_tokens, progress), session.facts()
            yield SessionLM(session, words, watch), watch, _engine(facts.engine, facts.version)
        return
    import torch

    from harness.evaluate.loading import load
    from harness.evaluate.tasks.torch_lm import TorchLM

    model, longest = load(folder, adapters, masks, progress)
    watch = Watch(longest, progress)
    yield TorchLM(model, words, watch, batch), watch, _engine("torch float32", torch.__version__)


def _engine(name: str, number: str) -> dict[str, str]:
    return {"engine": name, "engine_version": number}


def _require_room(tasks: Iterable[Any], watch: Watch) -> None:
    for task in tasks:
        if task.OUTPUT_TYPE == "generate_until":
            watch.room(task.config.generation_kwargs.get("max_gen_toks", MAX_NEW))


@contextmanager
def _quiet() -> Generator[None]:
    """No warnings of what is decided here (local rows, a loaded model), and no bars but ours."""
    import lm_eval.api.task as module

    log, bars = logging.getLogger("lm_eval"), module.tqdm
    before = log.level
    log.setLevel(logging.ERROR)
    module.tqdm = partial(bars, disable=True)
    try:
        yield
    finally:
        log.setLevel(before)
        module.tqdm = bars
