"""Tokenizer files that an old transformers reads; the real one reads them in test_pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.deepsparse.tokenizer import complaints, rewrites

PAIRS = [["h", "e"], ["l", "l"], ["he", "ll"]]


def tokenizer(folder: Path, **model: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": {"type": "BPE", **model}}))
    return path


def test_merges_become_strings(tmp_path: Path) -> None:
    path = tokenizer(tmp_path, vocab={"é": 0}, merges=PAIRS)
    new = rewrites()["tokenizer.json"](path)
    assert new is not None
    want = {"type": "BPE", "vocab": {"é": 0}, "merges": ["h e", "l l", "he ll"]}
    assert json.loads(new) == {"version": "1.0", "model": want}


@pytest.mark.parametrize(
    "model",
    [
        {"merges": ["h e"]},
        {"merges": []},
        {},
        {"merges": [["a b", "c"]]},
        {"merges": [["a", "b"], "c d"]},
        {"merges": "nonsense"},
    ],
)
def test_other_merges_stay_byte_for_byte(tmp_path: Path, model: dict[str, Any]) -> None:
    assert rewrites()["tokenizer.json"](tokenizer(tmp_path, **model)) is None


@pytest.mark.parametrize("raw", [[], {}, {"model": []}, {"model": None}, 7])
def test_no_tokenizer_at_all_stays(tmp_path: Path, raw: Any) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw))
    assert rewrites()["tokenizer.json"](path) is None
    assert complaints(path) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("TokenizersBackend", "PreTrainedTokenizerFast"),
        ("Qwen3TokenizerFast", "PreTrainedTokenizerFast"),
        (None, "PreTrainedTokenizerFast"),
        ("LlamaTokenizerFast", None),
        ("PreTrainedTokenizerFast", None),
    ],
)
def test_a_class_the_old_library_lacks(tmp_path: Path, old: str | None, new: str | None) -> None:
    tokenizer(tmp_path, merges=PAIRS)
    path = tmp_path / "tokenizer_config.json"
    config = {"bos_token": "<s>"} if old is None else {"bos_token": "<s>", "tokenizer_class": old}
    path.write_text(json.dumps(config))
    got = rewrites()["tokenizer_config.json"](path)
    if new is None:
        assert got is None
    else:
        assert got is not None
        assert json.loads(got) == {"bos_token": "<s>", "tokenizer_class": new}


def test_without_tokenizer_json_the_class_stays(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    assert rewrites()["tokenizer_config.json"](path) is None


def test_complaints(tmp_path: Path) -> None:
    assert complaints(tokenizer(tmp_path, merges=PAIRS, ignore_merges=False)) == []
    assert "ignore_merges" in complaints(tokenizer(tmp_path, ignore_merges=True))[0]
    assert "spaces" in complaints(tokenizer(tmp_path, merges=[["a b", "c"]]))[0]
