"""The eight prompts: deterministic, inside the vocabulary, short enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.verify.prompts import LENGTHS, NEW_TOKENS, make_prompts
from tests.tiny import save_tokenizer


def test_text_of_the_tokenizer(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    prompts = make_prompts(tmp_path / "tokenizer.json", 272, 256)
    assert prompts.kind == "text" and prompts.new_tokens == NEW_TOKENS
    assert tuple(len(t) for t in prompts.tokens) == LENGTHS == (5, 9, 16, 17, 40, 77, 128, 200)
    assert len({t[:5] for t in prompts.tokens}) == 8
    assert prompts == make_prompts(tmp_path / "tokenizer.json", 272, 256)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"version": "1.0"}'])
def test_random_ids_without_a_usable_tokenizer(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    prompts = make_prompts(path, 11, 500)
    assert prompts.kind == "random ids" and prompts == make_prompts(None, 11, 500)
    assert {t for p in prompts.tokens for t in p} == set(range(11))


def test_tokenizer_larger_than_the_vocabulary_is_not_used(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    prompts = make_prompts(tmp_path / "tokenizer.json", 50, 256)
    assert prompts.kind == "random ids" and max(max(p) for p in prompts.tokens) < 50


@pytest.mark.parametrize("most", [4, 16, 33, 64, 100, 231, 232, 10_000])
def test_prompt_and_answer_fit(most: int) -> None:
    prompts = make_prompts(None, 100, most)
    assert len(prompts.tokens) == 8 and prompts.new_tokens >= 2
    assert max(len(t) for t in prompts.tokens) + prompts.new_tokens <= most
    if most >= 232:
        assert tuple(len(t) for t in prompts.tokens) == LENGTHS
