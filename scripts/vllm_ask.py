"""vllm_ask.py URL MODEL NEW_TOKENS: ask a server greedily, through the OpenAI client.

Prompts come as a JSON list on standard input, answers go to standard output as one JSON line.
Runs in the server's environment, which has the client. One prompt at a time: the size of a batch
changes how bfloat16 sums are taken.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from typing import Any


def main(url: str, model: str, new_tokens: int, prompts: list[str]) -> list[dict[str, Any]]:
    """One answer a prompt: text, token ids, the best two and their logprobs at each place."""
    openai: Any = import_module("openai")
    client = openai.OpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)
    return [_ask(client, model, new_tokens, prompt) for prompt in prompts]


def _ask(client: Any, model: str, new_tokens: int, prompt: str) -> dict[str, Any]:
    start = time.perf_counter()
    answer = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=new_tokens,
        temperature=0.0,
        logprobs=2,
        extra_body={
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "ignore_eos": True,
        },
    )
    choice = answer.choices[0]
    return {
        "prompt": prompt,
        "text": choice.text,
        "prompt_tokens": list(choice.prompt_token_ids),
        "tokens": list(choice.token_ids),
        "best": [_best_two(place) for place in choice.logprobs.top_logprobs],
        "seconds": time.perf_counter() - start,
    }


def _best_two(place: dict[str, float]) -> list[tuple[int, float]]:
    ranked = sorted(place.items(), key=lambda item: -item[1])[:2]
    return [(int(name.partition(":")[2]), logprob) for name, logprob in ranked]  # "token_id:5"


if __name__ == "__main__":
    _url, _model, _new = sys.argv[1:]
    print(json.dumps(main(_url, _model, int(_new), json.load(sys.stdin))))
