"""One greedy answer of a server, token by token, with the time of each arrival."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scripts.vllm_server import Server

_SECONDS = 600.0


@dataclass(frozen=True)
class Answered:
    """Tokens, and seconds since the question at which the first and the last had come."""

    tokens: tuple[int, ...]
    first: float
    last: float

    @property
    def seconds_per_token(self) -> float:
        """Of the tokens after the first."""
        return (self.last - self.first) / (len(self.tokens) - 1)


def ask(server: Server, prompt: str, tokens: int) -> Answered:
    """Complete `prompt` by exactly `tokens` tokens, two or more.

    Raises:
        RuntimeError: an answer of another length, or all of it in one piece.
        urllib.error.URLError: the server is gone, or refuses.
    """
    wanted = {"model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0}
    wanted |= {"stream": True, "ignore_eos": True, "return_token_ids": True}
    request = urllib.request.Request(
        f"{server.url}/completions",
        json.dumps(wanted).encode(),
        {"Content-Type": "application/json"},
    )
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        found = [(token, time.perf_counter() - start) for token in _tokens(answer)]
    if len(found) != tokens or found[0][1] == found[-1][1]:
        raise RuntimeError(f"{server.model}: {len(found)} tokens, {tokens} were asked for")
    return Answered(tuple(token for token, _ in found), found[0][1], found[-1][1])


def _tokens(lines: Any) -> Iterator[int]:
    """Token ids of the chunks of a stream (server-sent events)."""
    for line in lines:
        text = line.decode().strip()
        if text.startswith("data: {"):
            for choice in json.loads(text.removeprefix("data: "))["choices"]:
                yield from choice.get("token_ids") or ()
