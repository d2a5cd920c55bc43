"""The tasks that can be asked for by name, and where lm-eval keeps their definitions."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.errors import UsageError

# The seven of Wanda, SparseGPT and LoSA (arXiv 2502.14816, table 2), in their order.
ZERO_SHOT = (
    "boolq",
    "rte",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
)
MMLU = "mmlu"  # 57 subjects, `mmlu_<subject>` each
# Folders of `lm_eval/tasks`; nothing else of lm-eval's is read.
FOLDERS = (
    "super_glue/boolq",
    "glue/rte",
    "hellaswag",
    "winogrande",
    "arc",
    "openbookqa",
    "piqa",
    "mmlu/default",
    "gsm8k",
)
NAMED = (*ZERO_SHOT, "piqa", "gsm8k")


def parse_tasks(text: str) -> list[str]:
    """Names of a comma-separated list, "zero-shot" replaced by the seven; each once, in order.

    Raises:
        UsageError: `usage` where there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = [name for word in words for name in (ZERO_SHOT if word == "zero-shot" else (word,))]
    if not names:
        raise UsageError("usage", "--tasks names none", expected=f"some of {known()}")
    return list(dict.fromkeys(names))


def known() -> str:
    """What `--tasks` takes, for a message."""
    return f"zero-shot, {', '.join(NAMED)}, {MMLU}, {MMLU}_SUBJECT, or a folder with a task.yaml"


def mmlu_subjects(defined: Sequence[str]) -> list[str]:
    """The subjects among the tasks that lm-eval defines."""
    return [name for name in defined if name.startswith(f"{MMLU}_")]
