"""Scores of tasks are those of the slow reference, in torch and on an exported artefact."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from datasets import Dataset

from exporter.cli import run as export_run
from harness.cli import run
from harness.evaluate.artefact import opened
from harness.evaluate.tasks.limits import Watch
from harness.evaluate.tasks.names import ZERO_SHOT
from harness.evaluate.tasks.run import Asked, evaluate_tasks
from harness.evaluate.tasks.session_lm import SessionLM
from harness.evaluate.tasks.torch_lm import TorchLM
from harness.hf import load_float32, load_tokenizer
from tests.evaluate.rows import WORDS, write, write_task
from tests.evaluate.slow import Slow, accuracy
from tests.tiny import save_tiny

CHOOSING = (*ZERO_SHOT, "piqa", "mmlu_anatomy")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, its artefact, and the reference."""
    root = tmp_path_factory.mktemp("models")
    base = save_tiny("smollm2", root / "m", sparsity=0.5, max_position_embeddings=300)
    assert export_run([str(base), "--target", "onnxruntime", "-o", str(root / "a")]) == 0
    return SimpleNamespace(base=base, artefact=root / "a", slow=Slow(base))


def scores(folder, asked, **options):
    done = evaluate_tasks(folder, asked, **options)
    return done, {(r.task, r.metric, r.filter): r for r in done.rows}


@pytest.mark.parametrize("where", ["base", "artefact"])
def test_accuracies_are_those_of_the_slow_reference(models, tmp_path, where):
    rows = {task: write_task(tmp_path, task) for task in CHOOSING}
    folder = getattr(models, where)
    done, found = scores(folder, Asked(CHOOSING, tmp_path), tokenizer=models.base)
    for task in CHOOSING:
        acc, normed = accuracy(models.slow, task, rows[task])
        row = found[task, "acc", "none"]
        assert (row.value, row.n, row.shots) == (pytest.approx(acc), len(rows[task]), 0)
        if (task, "acc_norm", "none") in found:
            assert found[task, "acc_norm", "none"].value == pytest.approx(normed)
        # The standard error of a mean of zeros and ones.
        assert row.stderr == pytest.approx((acc * (1 - acc) / (row.n - 1)) ** 0.5)
    assert {file.file.split("/")[0] for file in done.files} == set(CHOOSING)
    assert done.cut == 0


@pytest.mark.parametrize("where", ["base", "artefact"])
def test_likelihoods_are_those_of_the_slow_reference(models, where):
    """Answers of one token and of many, shared contexts, no context, and prompts too long."""
    long = " ".join(WORDS * 8)
    pairs = [("a b", " c"), ("a b", " d"), ("a b", " cd"), ("a ", "b"), (long, " end"), ("x", "y")]
    requests = [SimpleNamespace(args=pair, task_name="t") for pair in pairs]
    words = load_tokenizer(models.base)
    if where == "base":
        watch = Watch(300)
        got = TorchLM(load_float32(models.base), words, watch, 2).loglikelihood(requests)
    else:
        with opened(models.artefact) as session:
            watch = Watch(300)
            got = SessionLM(session, words, watch).loglikelihood(requests)
    for (nats, greedy), pair in zip(got, pairs, strict=True):
        expected, expected_greedy = models.slow.likelihood(*pair)
        assert nats == pytest.approx(expected, rel=1e-4)
        assert greedy == expected_greedy
    assert watch.cut == (len(long) > 300)


@pytest.mark.parametrize("where", ["base", "artefact"])
def test_whole_texts_are_scored_in_windows_of_the_model(models, where):
    text = " ".join(WORDS)
    words = load_tokenizer(models.base)
    requests = [SimpleNamespace(args=(text,), task_name="t")]
    if where == "base":
        lm = TorchLM(load_float32(models.base), words, Watch(40), 1)
        (got,) = lm.loglikelihood_rolling(requests)
    else:
        with opened(models.artefact) as session:
            (got,) = SessionLM(session, words, Watch(40)).loglikelihood_rolling(requests)
    # The first window stands after <s>; a later one sees the tokens that fill it, 40 in all.
    ids, total = words(text)["input_ids"], 0.0
    for first in range(0, len(ids), 40):
        part = ids[first : first + 40]
        before = [1] if first == 0 else ids[first + len(part) - 41 : first]
        total += _nats(models.slow, before, part)
    assert got == pytest.approx(total, rel=1e-4)


def _nats(slow, before, part):
    import torch

    with torch.no_grad():
        rows = torch.log_softmax(slow.model(torch.tensor([before + part])).logits[0], -1)
    return sum(float(rows[len(before) + i - 1, part[i]]) for i in range(len(part)))


@pytest.mark.parametrize("where", ["base", "artefact"])
def test_generated_answers_are_matched(models, tmp_path, where):
    """A row counts as right where the greedy text holds its answer, by the task's filter."""
    prompts = [f"Q: {a} {b}\nA:" for a in WORDS[:3] for b in WORDS[3:5]]
    said = [models.slow.text(prompt, 12, ["e"]) for prompt in prompts]
    rows = [
        {"q": prompt, "gold": text[:3] if i % 3 else "never"}
        for i, (prompt, text) in enumerate(zip(prompts, said, strict=True))
    ]
    write(tmp_path, "mine", "test", rows)
    (tmp_path / "mine" / "task.yaml").write_text(
        "output_type: generate_until\n"
        'doc_to_text: "{{q}}"\n'
        "doc_to_target: gold\n"
        "generation_kwargs: {until: [e], max_gen_toks: 12}\n"
        "metric_list: [{metric: exact_match}]\n"
        "filter_list: [{name: start, filter: [{function: regex, regex_pattern: '(?s)^(.{3})',\n"
        "  fallback: none}, {function: take_first}]}]\n"
    )
    asked = Asked(("mine",), tmp_path)
    _, found = scores(getattr(models, where), asked, tokenizer=models.base)
    expected = [r["gold"] == t[:3] and len(t) >= 3 for r, t in zip(rows, said, strict=True)]
    assert 0 < sum(expected) < len(rows)
    assert found["mine", "exact_match", "start"].value == pytest.approx(sum(expected) / len(rows))


def test_mmlu_is_the_mean_over_all_rows_and_takes_examples(models, tmp_path, monkeypatch):
    subjects = ["mmlu_anatomy", "mmlu_virology"]
    monkeypatch.setattr("harness.evaluate.tasks.build.mmlu_subjects", lambda defined: subjects)
    rows = {task: write_task(tmp_path, task, n) for task, n in zip(subjects, (3, 9), strict=True)}
    done, found = scores(models.base, Asked(("mmlu",), tmp_path))
    right = sum(accuracy(models.slow, task, rows[task])[0] * len(rows[task]) for task in subjects)
    whole = found["mmlu", "acc", "none"]
    assert (whole.value, whole.n) == (pytest.approx(right / 12), 12)
    assert done.rows[0] == whole
    for task in subjects:
        write(tmp_path, task, "dev", [{**rows[task][0], "question": "Q?"}])
    _, one = scores(models.base, Asked(("mmlu",), tmp_path, shots=1))
    assert one["mmlu_virology", "acc", "none"].shots == 1


def test_gsm8k_asks_with_examples_and_reads_the_number(models, tmp_path):
    write_task(tmp_path, "gsm8k", 2)
    write(tmp_path, "gsm8k", "train", [{"question": "a?", "answer": "b #### 3"}] * 2)
    folder = save_tiny("smollm2", tmp_path / "m", max_position_embeddings=400)
    done, found = scores(folder, Asked(("gsm8k",), tmp_path, shots=2, limit=1))
    assert {key[2] for key in found} == {"strict-match", "flexible-extract"}
    assert all((row.n, row.shots) == (1, 2) for row in found.values())
    assert [file.file for file in done.files] == ["gsm8k/test.jsonl", "gsm8k/train.jsonl"]


def test_the_command_writes_json_of_its_schema_and_a_table(models, tmp_path, capsys):
    write_task(tmp_path, "boolq")
    words = ["eval", str(models.base), "--tasks", "boolq", "--task-data", str(tmp_path)]
    assert run([*words, "--limit", "5", "-o", str(tmp_path / "r.json")]) == 0
    assert "boolq" in capsys.readouterr().out
    record = json.loads((tmp_path / "r.json").read_text())
    schema = resources.files("harness.evaluate.tasks").joinpath("result.schema.json").read_text()
    jsonschema.validate(record, json.loads(schema))
    assert record["scores"][0]["n"] == record["limit"] == 5
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["n"] == 8


def test_lists_and_parquet_are_rows_too(models, tmp_path):
    rows = write_task(tmp_path / "lines", "piqa")
    (tmp_path / "list" / "piqa").mkdir(parents=True)
    (tmp_path / "list" / "piqa" / "validation.json").write_text(json.dumps(rows))
    (tmp_path / "table" / "piqa").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(tmp_path / "table" / "piqa" / "validation.parquet")
    found = [
        scores(models.base, Asked(("piqa",), tmp_path / kind))[0].rows
        for kind in ("lines", "list", "table")
    ]
    assert found[0] == found[1] == found[2]


def test_the_task_file_of_the_page_is_scored(models, tmp_path):
    """Rows of an instruction and the name of the right answer, as the page says."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md"
    text = page.read_text().split("```yaml\n")[1].split("```")[0]
    rows = [
        {"instruction": f"{word}?", "answer": f"answer{1 + i % 4}"} for i, word in enumerate(WORDS)
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "task.yaml").write_text(text)
    (tmp_path / "mine" / "test.json").write_text(json.dumps(rows))
    _, found = scores(models.base, Asked(("mine",), tmp_path))
    right = 0
    for row in rows:
        context = f"{row['instruction']}\n\nthe correct answer is"
        picked = models.slow.picked([(context, f" answer{i}") for i in range(1, 5)])
        right += row["answer"] == f"answer{picked + 1}"
    assert found["mine", "acc", "none"].value == pytest.approx(right / len(rows))
