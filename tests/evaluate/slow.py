"""Scores the slow and obvious way: one float64 forward an answer, prompts written out by hand."""

from __future__ import annotations

import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Slow:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.words = AutoTokenizer.from_pretrained(folder)

    def likelihood(self, context, answer):
        """(nats, greedy) of `answer` after `context`, whose blanks at the end it begins with."""
        context, answer = context.rstrip(), context[len(context.rstrip()) :] + answer
        before = self.words(context)["input_ids"]
        whole = self.words(context + answer)["input_ids"]
        longest = self.model.config.max_position_embeddings
        extra = max(0, len(whole) - 1 - longest)
        with torch.no_grad():
            logits = self.model(torch.tensor([whole[extra:-1]])).logits[0]
        rows = torch.log_softmax(logits, -1)
        total, greedy = 0.0, True
        for i in range(len(before), len(whole)):
            total += float(rows[i - 1 - extra, whole[i]])
            greedy &= int(rows[i - 1 - extra].argmax()) == whole[i]
        return total, greedy

    def text(self, prompt, count, stops):
        """Greedy text after `prompt`."""
        ids = self.words(prompt)["input_ids"]
        new = []
        while len(new) < count:
            with torch.no_grad():
                row = self.model(torch.tensor([ids + new])).logits[0, -1]
            new.append(int(row.argmax()))
            if new[-1] == self.words.eos_token_id:
                break
            if any(stop in self.words.decode(new, skip_special_tokens=True) for stop in stops):
                break
        text = self.words.decode(new, skip_special_tokens=True)
        return min((text.split(stop)[0] for stop in stops), key=len)

    def picked(self, pairs, lengths=None):
        """Which of (context, answer) is likeliest, by nats or by nats a character."""
        nats = [self.likelihood(*pair)[0] for pair in pairs]
        if lengths is not None:
            nats = [n / length for n, length in zip(nats, lengths, strict=True)]
        return nats.index(max(nats))


def _clean(text):
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def question(task, row):
    """(context, choices, index of the right one) as lm-eval's definitions have them."""
    if task == "boolq":
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return context, ["no", "yes"], row["label"]
    if task == "rte":
        context = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        return context, ["True", "False"], row["label"]
    if task == "hellaswag":
        context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        return _clean(context), [_clean(e) for e in row["endings"]], int(row["label"])
    if task == "piqa":
        context = f"Question: {row['goal']}\nAnswer:"
        return context, [row["sol1"], row["sol2"]], row["label"]
    if task.startswith("mmlu_"):
        about = task.removeprefix("mmlu_")
        lines = [f"{letter}. {c}" for letter, c in zip("ABCD", row["choices"], strict=True)]
        intro = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        asked = "\n".join([row["question"], *lines, "Answer:"])
        return intro + asked, list("ABCD"), row["answer"]
    choices = row["choices"]
    context = row["question_stem"] if "question_stem" in row else row["question"]
    if task.startswith("arc_"):
        context = f"Question: {context}\nAnswer:"
    return context, choices["text"], choices["label"].index(row["answerKey"])


def accuracy(slow, task, rows):
    """(acc, acc_norm)."""
    right = normed = 0
    for row in rows:
        if task == "winogrande":
            start, rest = row["sentence"].split("_")
            pairs = [(start + row[o], " " + rest.strip()) for o in ("option1", "option2")]
            right += slow.picked(pairs) == int(row["answer"]) - 1
            continue
        context, choices, gold = question(task, row)
        pairs = [(context, f" {choice}") for choice in choices]
        right += slow.picked(pairs) == gold
        normed += slow.picked(pairs, [len(choice) for choice in choices]) == gold
    return right / len(rows), normed / len(rows)
