"""Training text: what each kind of source gives, and what is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exporter.errors import InputRefused, UsageError
from harness.methods.data import documents
from harness.text import BUILTIN


def test_json_lines_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two", "more": 3}\n')
    assert documents(str(file), "text") == ["one", "two"]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "d.txt"
    file.write_text("one\n\ntwo\n")
    assert documents(str(file), "text") == ["one\n\ntwo\n"]
    assert len(documents(BUILTIN, "text")) == 1


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ('{"text": "one"}\n{"tex": "two"}\n', "data-invalid", "line 2 has no text 'text'"),
        ('["one"]\n', "data-invalid", "line 1 has no text 'text'"),
        ('{"text": 1}\n', "data-invalid", "line 1 has no text 'text'"),
        ('{"text": "one"}\n{"text"\n', "json-invalid", "line 2"),
        ('{"text": "  "}\n', "data-invalid", "the text is empty"),
        ("", "data-invalid", "the text is empty"),
    ],
)
def test_lines_that_are_refused(tmp_path: Path, text: str, code: str, said: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(text)
    with pytest.raises(InputRefused) as refusal:
        documents(str(file), "text")
    assert refusal.value.code == code
    assert said in str(refusal.value) and "d.jsonl" in str(refusal.value)


def test_a_data_set_that_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputRefused) as refusal:
        documents("nobody/no-such-data@all:train", "text")
    assert refusal.value.code == "input-missing"
    assert "nobody/no-such-data" in str(refusal.value)


def test_a_data_set_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"datasets is not installed[\s\S]*sparse-export\[tune\]"):
        documents("nobody/no-such-data", "text")
