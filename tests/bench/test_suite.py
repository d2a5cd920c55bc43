"""Suite files and prompts: what is read, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from bench.prompts import read_prompts
from bench.suite import Suite, read_suite, suite_schema
from bench.workloads import Workload, standard
from exporter.errors import InputRefused

CI = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "ci"


def suite(folder: Path, text: str) -> Suite:
    path = folder / "suite.toml"
    path.write_text(text)
    return read_suite(path)


def test_the_suite_of_the_docs_is_one(tmp_path: Path) -> None:
    plan = read_suite(CI / "bench.toml").plan(CI, tmp_path)
    assert [w.name for w in plan.workloads] == ["decode-b1", "mixed-64-8"]
    assert (plan.processes, plan.most, plan.rounds) == (6, 12, (2,))


def test_an_empty_suite_is_the_standard_set(tmp_path: Path) -> None:
    plan = suite(tmp_path, "").plan(tmp_path, tmp_path)
    assert plan.workloads == standard()
    names = [w.name for w in plan.workloads]
    assert names[:3] == ["decode-b1", "decode-b4", "decode-b16"]
    assert names[3:] == ["prefill-128", "prefill-512", "prefill-2048", "mixed-512-64"]


def test_prompts_lie_beside_the_suite_and_are_taken_in_turn(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"tokens": [1, 2, 3]}\n\n{"tokens": [4]}\n')
    text = '[[workload]]\nkind = "decode"\nbatch = 2\nprompts = "chat.jsonl"\nnew_tokens = 5\n'
    (found,) = suite(tmp_path, text).plan(tmp_path, tmp_path).workloads
    assert found.name == "decode-b2-chat" and found.length == 3 + 5
    assert found.sequences(9, 0) == [(1, 2, 3), (4,)] == found.sequences(9, 1)
    one = Workload(3, 5, prompts=found.prompts)
    assert [one.sequences(9, i)[0] for i in range(3)] == [(1, 2, 3), (4,), (1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("processes = 0", "processes"),
        ("speed = 1", "speed"),
        ("version = 2", "version"),
        ("min_effect = 'x'", "min_effect"),
        ('[[workload]]\nkind = "train"', "workload.0.kind"),
        ('[[workload]]\nkind = "prefill"\nbatch = 4', "batch 1"),
        ('[[workload]]\nkind = "decode"\n[[workload]]\nkind = "decode"', "decode-b1"),
        ("not toml", "suite-invalid"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputRefused, match=words):
        suite(tmp_path, text)


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="input-unreadable"):
        read_suite(tmp_path / "none.toml")


def test_the_schema_agrees_with_the_reader() -> None:
    check = jsonschema.Draft202012Validator(suite_schema())
    check.validate({"workload": [{"kind": "mixed", "slo_ttft_ms": 5}]})
    with pytest.raises(jsonschema.ValidationError):
        check.validate({"speed": 1})


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"tokens": []}', '{"tokens": [-1]}', '{"tokens": [true]}', "{"]
)
def test_prompts_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(InputRefused, match="data-invalid"):
        read_prompts(tmp_path / "p.jsonl", tmp_path)


def test_text_is_tokenised_by_the_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Calibrator:
        def tokenise(self, folder: Path, text: str) -> list[int]:
            assert folder == tmp_path
            return [len(word) for word in text.split()]

    monkeypatch.setattr("bench.prompts.load_calibrator", Calibrator)
    (tmp_path / "p.txt").write_text("a bc\n\ndef\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a bc"}\n')
    assert read_prompts(tmp_path / "p.txt", tmp_path) == ((1, 2), (3,))
    assert read_prompts(tmp_path / "p.jsonl", tmp_path) == ((1, 2),)
