"""Rows of every task in the hub's form, few and short, with random text; and their files."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ["sun", "moon", "tree", "house", "river", "stone", "bird", "cloud", "fire", "grass"]
SPLIT = {  # which file is scored
    "boolq": "validation",
    "rte": "validation",
    "hellaswag": "validation",
    "winogrande": "validation",
    "arc_easy": "test",
    "arc_challenge": "test",
    "openbookqa": "test",
    "piqa": "validation",
    "mmlu_anatomy": "test",
    "mmlu_virology": "test",
    "gsm8k": "test",
}


def _choices(rng, labels):
    text = [" ".join(rng.sample(WORDS, rng.randint(1, 3))) for _ in labels]
    return {"text": text, "label": list(labels)}


def row(task, rng):
    """One row."""

    def say(n):
        return " ".join(rng.choices(WORDS, k=n))

    lettered = rng.choice(["ABCD", "1234"])
    if task.startswith("mmlu"):
        return {
            "question": say(4),
            "choices": _choices(rng, "ABCD")["text"],
            "answer": rng.randrange(4),
        }
    return {
        "boolq": {"passage": say(6), "question": say(3), "label": rng.randrange(2)},
        "rte": {"sentence1": say(5), "sentence2": say(3), "label": rng.randrange(2)},
        "hellaswag": {
            "activity_label": say(1),
            "ctx_a": f"{say(3)}.",
            "ctx_b": say(2),
            "endings": [f"{say(2)} [step] {say(1)}" for _ in range(4)],
            "label": str(rng.randrange(4)),
        },
        "winogrande": {
            "sentence": f"{say(2)} _ {say(2)}.",
            "option1": say(1),
            "option2": say(2),
            "answer": rng.choice("12"),
        },
        "arc_easy": {
            "question": say(4),
            "choices": _choices(rng, lettered),
            "answerKey": rng.choice(lettered),
        },
        "openbookqa": {
            "question_stem": say(4),
            "choices": _choices(rng, "ABCD"),
            "answerKey": rng.choice("ABCD"),
        },
        "piqa": {"goal": say(3), "sol1": say(2), "sol2": say(3), "label": rng.randrange(2)},
        "gsm8k": {"question": say(3), "answer": f"{say(2)} #### {rng.randrange(99)}"},
    }[{"arc_challenge": "arc_easy"}.get(task, task)]


def write(folder: Path, task: str, split: str, rows: list) -> Path:
    """`folder/task/split.jsonl`."""
    path = folder / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def write_task(folder: Path, task: str, count: int = 8, seed: int = 0) -> list:
    """Rows of a task in its file; gives them."""
    rng = random.Random(f"{task} {seed}")
    rows = [row(task, rng) for _ in range(count)]
    write(folder, task, SPLIT[task], rows)
    return rows
