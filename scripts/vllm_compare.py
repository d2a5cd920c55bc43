"""Greedy answers of the packed folder beside those of the dense one, and what a difference means.

Both serve the same bfloat16 weights. A kernel that sums in another order may choose the other of
two tokens only where the dense run's best two logits cannot be told apart in bfloat16, the type
the server computes logits in: each is rounded by at most half a step, 2^-9 of its size, so two
logits no further apart than 2^-8 of the larger may change places. After the first difference the
texts go different ways, so only the first place of each prompt is judged.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

BF16_STEP = 2.0**-8


class Answer(BaseModel):
    """What a server said to one prompt."""

    model_config = ConfigDict(extra="forbid")
    prompt: str
    text: str
    prompt_tokens: list[int]
    tokens: list[int]
    best: list[list[tuple[int, float]]]  # at each place the best two: token, logprob
    seconds: float


class Difference(BaseModel):
    """The first place where two greedy answers differ, seen from the dense run."""

    prompt: str
    place: int  # tokens of the answer before it
    dense: int
    packed: int
    gap: float  # between the dense run's best two logits; infinite where `packed` is neither
    top_logit: float = 0.0  # the larger of them, float32
    allowed_gap: float = 0.0

    @property
    def allowed(self) -> bool:
        """Whether bfloat16 rounding explains it."""
        return self.gap <= self.allowed_gap

    def judged(self, top_logit: float) -> Difference:
        """With the size of the logits known."""
        bound = BF16_STEP * abs(top_logit)
        return self.model_copy(update={"top_logit": top_logit, "allowed_gap": bound})


class Comparison(BaseModel):
    """All prompts of one pair."""

    prompts: int
    tokens: int
    equal_texts: int
    equal_tokens: int  # before the first difference of each prompt
    differences: list[Difference]

    @property
    def passed(self) -> bool:
        """Whether every difference is a tie in bfloat16."""
        return all(difference.allowed for difference in self.differences)


def compare(dense: Sequence[Answer], packed: Sequence[Answer]) -> Comparison:
    """Prompt by prompt; the differences are not judged yet."""
    differences: list[Difference] = []
    equal_tokens = 0
    for one, other in zip(dense, packed, strict=True):
        found = _first_difference(one, other)
        equal_tokens += len(one.tokens) if found is None else found.place
        if found is not None:
            differences.append(found)
    return Comparison(
        prompts=len(dense),
        tokens=sum(len(answer.tokens) for answer in dense),
        equal_texts=sum(a.text == b.text for a, b in zip(dense, packed, strict=True)),
        equal_tokens=equal_tokens,
        differences=differences,
    )


def _first_difference(dense: Answer, packed: Answer) -> Difference | None:
    if dense.prompt_tokens != packed.prompt_tokens or len(dense.tokens) != len(packed.tokens):
        raise ValueError(f"the two servers were asked differently: {dense.prompt!r}")
    for place, (one, other) in enumerate(zip(dense.tokens, packed.tokens, strict=True)):
        if one != other:
            gap = _gap(dense.best[place], one, other)
            return Difference(prompt=dense.prompt, place=place, dense=one, packed=other, gap=gap)
    return None


def _gap(best: list[tuple[int, float]], one: int, other: int) -> float:
    logprobs = dict(best)
    if set(logprobs) != {one, other}:
        return float("inf")
    return logprobs[one] - logprobs[other]
