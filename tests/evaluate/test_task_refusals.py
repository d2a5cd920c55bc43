"""What is refused before a model is run: missing files, broken rows, files that would run code."""

from __future__ import annotations

import json
import sys

import pytest

from exporter.errors import InputRefused, UsageError, VerificationFailed
from harness.cli import run
from harness.evaluate.tasks.limits import Watch, require_finite
from harness.evaluate.tasks.names import ZERO_SHOT, parse_tasks
from harness.evaluate.tasks.own import read_own
from harness.evaluate.tasks.run import Asked, evaluate_tasks
from harness.evaluate.tasks.sandbox import sandboxed
from tests.evaluate.rows import write, write_task
from tests.tiny import save_tiny

GOOD = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "doc_to_choice": ["x", "y"],
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny("smollm2", tmp_path_factory.mktemp("m"))


def refused(model, data, name, **asked):
    with pytest.raises((InputRefused, UsageError)) as refusal:
        evaluate_tasks(model, Asked((name,), data, **asked))
    return refusal.value.code, str(refusal.value)


def test_a_missing_file_is_named(model, tmp_path):
    code, said = refused(model, tmp_path, "boolq")
    assert code == "input-missing" and "boolq/validation.jsonl" in said
    write_task(tmp_path, "mmlu_anatomy")
    code, said = refused(model, tmp_path, "mmlu_anatomy", shots=1)
    assert code == "input-missing" and "mmlu_anatomy/dev.jsonl" in said
    write_task(tmp_path, "gsm8k")
    code, said = refused(model, tmp_path, "gsm8k")
    assert code == "input-missing" and "gsm8k/train.jsonl" in said
    code, said = refused(model, tmp_path, "mmlu")
    assert code == "input-missing" and "mmlu_" in said


@pytest.mark.parametrize(
    ("task", "change", "said"),
    [
        ("boolq", {"label": 2}, "the answer 2 is none of 2"),
        ("boolq", {"label": None}, "null"),
        ("boolq", {"passage": None}, "null"),
        ("winogrande", {"answer": "3"}, "KeyError: '3'"),
        ("winogrande", {"sentence": "no blank"}, "substring not found"),
        ("arc_easy", {"answerKey": "Z"}, "'Z' is not in list"),
        ("openbookqa", {"choices": {"text": [], "label": []}}, "row 3"),
        ("piqa", {"sol1": ""}, "not texts"),
        ("gsm8k", {"answer": ""}, "the answer is empty"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(model, tmp_path, task, change, said):
    rows = write_task(tmp_path, task)
    split = next((tmp_path / task).iterdir()).stem
    write(tmp_path, task, split, [*rows[:2], {**rows[2], **change}, *rows[3:]])
    code, text = refused(model, tmp_path, task, shots=0)
    assert code == "data-invalid" and f"{task}/{split}, row 3" in text
    assert said in text


def test_a_limit_leaves_later_rows_alone(model, tmp_path):
    rows = write_task(tmp_path, "boolq")
    write(tmp_path, "boolq", "validation", [*rows[:2], {**rows[2], "label": 2}])
    done = evaluate_tasks(model, Asked(("boolq",), tmp_path, limit=2))
    assert done.rows[0].n == 2


@pytest.mark.parametrize(
    ("file", "text", "code", "said"),
    [
        ("validation.jsonl", '{"passage": "a"}\n', "data-invalid", "question"),
        ("validation.jsonl", '{"a": 1}\n{"b": 1}\n', "data-invalid", "row 2 is b"),
        ("validation.jsonl", '{"a": 1}\n[1]\n', "data-invalid", "row 2 is no object but list"),
        ("validation.jsonl", '{"a": 1}\n{"a": "x"}\n', "data-invalid", "boolq/validation.jsonl"),
        ("validation.jsonl", '{"a": 1}\n{"a"\n', "json-invalid", "line 2"),
        ("validation.jsonl", '{"a": 1, "a": 2}\n', "json-invalid", "comes twice"),
        ("validation.jsonl", "\n", "data-invalid", "empty"),
        ("validation.json", '{"a": 1}', "data-invalid", "a list of objects"),
        ("validation.json", "[]", "data-invalid", "no rows"),
        ("validation.parquet", "PAR1 not", "data-invalid", "a parquet file of rows"),
    ],
)
def test_files_of_another_form(model, tmp_path, file, text, code, said):
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / file).write_text(text)
    found, message = refused(model, tmp_path, "boolq")
    assert found == code and said in message and file in message


def test_two_files_for_one_split(model, tmp_path):
    write_task(tmp_path, "boolq")
    (tmp_path / "boolq" / "validation.json").write_text("[]")
    code, said = refused(model, tmp_path, "boolq")
    assert code == "data-invalid" and "validation.jsonl and validation.json" in said


def own(folder, text):
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    (folder / "mine" / "task.yaml").write_text(text if isinstance(text, str) else json.dumps(text))
    write(folder, "mine", "test", [{"q": "one", "a": 0}, {"q": "two", "a": 1}])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("process_docs: !function utils.process\n", "a tag that runs code"),
        ("doc_to_text: !!python/name:os.system\n", "a tag that runs code"),
        ("a: [\n", "YAML"),
        ("- a\n", "the file"),
        ({**GOOD, "process_docs": "x"}, "process_docs"),
        ({**GOOD, "dataset_path": "someone/elses"}, "dataset_path"),
        ({**GOOD, "unsafe_code": True}, "unsafe_code"),
        ({**GOOD, "class": "x"}, "class"),
        ({**GOOD, "include": "/etc/passwd"}, "include"),
        ({**GOOD, "metric_list": [{"metric": "code_eval"}]}, "metric_list.0.metric"),
        ({**GOOD, "metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "hf_evaluate"),
        ({**GOOD, "generation_kwargs": {"until": [], "do_sample": True}}, "do_sample"),
        ({**GOOD, "generation_kwargs": {"until": [], "custom_generate": "x"}}, "custom_generate"),
        ({**GOOD, "filter_list": [{"name": "f", "filter": [{"function": "custom"}]}]}, "function"),
        ({**GOOD, "task": "other"}, "'other'"),
        ({**GOOD, "doc_to_choice": None}, "no doc_to_choice"),
        ({**GOOD, "output_type": "generate_until"}, "no generation_kwargs"),
    ],
)
def test_task_files_that_are_refused(tmp_path, change, said):
    own(tmp_path, change)
    with pytest.raises(InputRefused) as refusal:
        read_own(tmp_path, "mine")
    assert refusal.value.code == "task-invalid"
    assert "mine/task.yaml" in str(refusal.value) and said in str(refusal.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ q.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ missing }}",
        "{% for %}",
    ],
)
def test_templates_cannot_reach_python_or_fields_that_are_not_there(model, tmp_path, template):
    own(tmp_path, {**GOOD, "doc_to_text": template})
    code, said = refused(model, tmp_path, "mine")
    assert code == "data-invalid" and "mine" in said


def test_a_task_of_ones_own_may_not_hide_lm_evals(model, tmp_path):
    write_task(tmp_path, "boolq")
    (tmp_path / "boolq" / "task.yaml").write_text(json.dumps(GOOD))
    assert refused(model, tmp_path, "boolq")[0] == "task-invalid"


def test_lm_evals_environment_is_put_back(model, tmp_path):
    import lm_eval.utils

    before = lm_eval.utils.env
    refused(model, tmp_path, "boolq")
    assert lm_eval.utils.env is before


def test_an_lm_eval_that_renders_in_another_way_is_refused(monkeypatch):
    monkeypatch.setattr("lm_eval.utils.apply_template", lambda template, doc: template)
    with pytest.raises(UsageError, match="outside the sandbox"), sandboxed():
        pass


def test_names(model, tmp_path):
    assert parse_tasks("zero-shot, gsm8k,boolq") == [*ZERO_SHOT, "gsm8k"]
    with pytest.raises(UsageError):
        parse_tasks(" , ")
    code, said = refused(model, tmp_path, "no-such")
    assert code == "usage" and "hellaswag" in said


@pytest.mark.parametrize("words", [[], ["--tasks", "boolq"], ["--task-data", "."]])
def test_the_command_wants_data_or_tasks(model, words):
    assert run(["eval", str(model), *words]) == 2


def test_answers_longer_than_the_model_reads(model, tmp_path):
    write_task(tmp_path, "gsm8k")
    code, said = refused(model, tmp_path, "gsm8k", shots=0)  # 256 tokens, and the model reads 256
    assert code == "usage" and "max_gen_toks" in said
    assert Watch(300).room(256) == 44


def test_adapters_on_an_artefact_and_a_missing_library(model, tmp_path, monkeypatch):
    write_task(tmp_path, "boolq")
    (tmp_path / "a" / ".sparse-export").mkdir(parents=True)
    (tmp_path / "a" / ".sparse-export" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="exported artefact"):
        evaluate_tasks(
            tmp_path / "a", Asked(("boolq",), tmp_path), adapters=[tmp_path], tokenizer=model
        )
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"lm-eval is not installed[\s\S]*sparse-export\[tune\]"):
        evaluate_tasks(model, Asked(("boolq",), tmp_path))


def test_a_likelihood_that_is_nan_stops_it():
    require_finite([-1.0, 0.0])
    with pytest.raises(VerificationFailed, match="values-not-finite"):
        require_finite([-1.0, float("nan")])
