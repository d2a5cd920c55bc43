"""What the vLLM demo calls equal, and what it says of a place that differs."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from scripts import vllm_ask
from scripts.vllm_compare import Answer, Comparison, compare


def answer(tokens: list[int], best: list[list[tuple[int, float]]] | None = None) -> Answer:
    filled = best or [[(token, -0.1), (999, -3.0)] for token in tokens]
    text = " ".join(map(str, tokens))
    return Answer(
        prompt="p", text=text, prompt_tokens=[1, 2], tokens=tokens, best=filled, seconds=1
    )


def test_equal_answers():
    found = compare([answer([5, 6]), answer([7])], [answer([5, 6]), answer([7])])
    assert found == Comparison(prompts=2, tokens=3, equal_texts=2, equal_tokens=3, differences=[])
    assert found.passed


def test_a_tie_is_allowed_up_to_one_rounding_of_both_logits():
    best = [[(5, -0.1), (9, -3.0)], [(6, -0.70), (8, -0.75)]]
    found = compare([answer([5, 6, 7], [*best, [(7, 0.0), (1, -9.0)]])], [answer([5, 8, 8])])
    (place,) = found.differences
    assert (place.place, place.dense, place.packed) == (1, 6, 8)
    assert place.gap == pytest.approx(0.05) and found.equal_tokens == 1 and found.equal_texts == 0
    # 0.05 apart: a bfloat16 step of 2^-8 reaches it at logits of 12.8 and more.
    assert place.judged(12.9).allowed and not place.judged(12.7).allowed
    assert place.judged(-12.9).allowed
    assert not place.allowed and not found.passed  # not judged yet
    assert found.model_copy(update={"differences": [place.judged(20.0)]}).passed


def test_a_token_that_was_not_among_the_best_two_is_never_explained():
    found = compare([answer([5], [[(5, -0.7), (6, -0.7)]])], [answer([4])])
    (place,) = found.differences
    assert math.isinf(place.gap) and not place.judged(1e6).allowed


def test_answers_to_other_questions_are_no_comparison():
    other = answer([5]).model_copy(update={"prompt_tokens": [3]})
    with pytest.raises(ValueError, match="asked differently"):
        compare([answer([5])], [other])


def test_the_client_asks_greedily_and_keeps_the_best_two(monkeypatch):
    asked: list[dict[str, Any]] = []

    class Client:
        def __init__(self, **how: Any) -> None:
            assert how["base_url"] == "http://here/v1" and how["max_retries"] == 0
            self.completions = self

        def create(self, **request: Any) -> Any:
            asked.append(request)
            top = [
                {"token_id:5": -0.2, "token_id:6": -2.0},
                {"token_id:9": -1.0, "token_id:7": -0.5},
            ]
            choice = _Object(
                text="ab",
                prompt_token_ids=[1],
                token_ids=[5, 7],
                logprobs=_Object(top_logprobs=top),
            )
            return _Object(choices=[choice])

    monkeypatch.setattr(vllm_ask, "import_module", lambda name: _Object(OpenAI=Client))
    (made,) = vllm_ask.main("http://here/v1", "folder", 2, ["p"])
    parsed = Answer.model_validate(json.loads(json.dumps(made)))
    assert parsed.best == [[(5, -0.2), (6, -2.0)], [(7, -0.5), (9, -1.0)]]
    (request,) = asked
    assert (request["temperature"], request["max_tokens"], request["model"]) == (0.0, 2, "folder")


class _Object:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)
