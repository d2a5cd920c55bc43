"""Timing a streamed answer, and what becomes of the times."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from scripts.bench_vllm_cpu import parse, result, rounds, told
from scripts.vllm_server import Server
from scripts.vllm_stream import Answered, ask

PAUSE = 0.05


class Handler(BaseHTTPRequestHandler):
    """Three chunks of one, two and one tokens, with pauses; all at once for the model "hasty"."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert (asked["temperature"], asked["stream"], asked["ignore_eos"]) == (0.0, True, True)
        self.send_response(200)
        self.end_headers()
        chunks: list[dict[str, Any]] = [
            {"choices": [{"token_ids": ids}]} for ids in ([5], [6, 7], [8])
        ]
        chunks.append({"choices": [], "usage": None})
        for chunk in chunks[: asked["max_tokens"]]:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
            time.sleep(PAUSE)
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server() -> Generator[Server]:
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield Server(f"http://127.0.0.1:{http.server_port}/v1", "m", 0.0, 0)
        http.shutdown()


def test_the_first_token_does_not_count_for_decode(server: Server) -> None:
    found = ask(server, "p", 4)
    assert found.tokens == (5, 6, 7, 8)
    assert 0 < found.first < found.last and found.last - found.first > 1.5 * PAUSE
    assert found.seconds_per_token == pytest.approx((found.last - found.first) / 3)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_short_answer_is_an_error(tokens: int, server: Server) -> None:
    with pytest.raises(RuntimeError, match=f"{tokens} were asked for"):
        ask(server, "p", tokens)


class Fake:
    """A server that says when it runs."""

    running: list[str] = []

    def __init__(self, name: str) -> None:
        self.name = name

    def resume(self) -> None:
        assert not Fake.running
        Fake.running.append(self.name)

    def suspend(self) -> None:
        Fake.running.remove(self.name)


def test_only_one_server_runs_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(server: Fake, prompt: str, tokens: int) -> Answered:
        assert Fake.running == [server.name] and prompt
        asked.append(server.name)
        return Answered((1,) * tokens, 0.1, 0.1 + (tokens - 1) * len(server.name))

    monkeypatch.setattr("scripts.bench_vllm_cpu.ask", answer)
    given = argparse.Namespace(rounds=6, tokens=5)
    found = rounds({n: Fake(n) for n in ("a", "bb")}, given)  # type: ignore[dict-item]
    assert len(asked) == 14 and {len(each) for each in found.values()} == {6}
    assert [each.seconds_per_token for each in found["bb"]] == pytest.approx([2.0] * 6)
    assert asked != ["a", "bb"] * 7, "the order is drawn"


def test_the_ratio_is_of_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["bench", "x/dense", "x/packed", "--threads", "2", "--flags", "--max-num-seqs 4"]
    monkeypatch.setattr("sys.argv", argv)
    times = {
        name: [Answered((1, 2, 3), 1.0, 1.0 + 2 * s * (1 + i / 100)) for i in range(8)]
        for name, s in (("dense", 0.3), ("packed", 0.2))
    }
    found = result(times, parse(), {"dense": "", "packed": "210 of 210"})
    (line,) = found["ratios"]
    assert (line["new"], line["against"]) == ("packed", "dense")
    assert line["ratio"] == pytest.approx(1.5) and line["low"] <= 1.5 <= line["high"]
    assert found["servers"]["packed"]["told"] == "210 of 210" and found["threads"] == 2
    json.dumps(found)
    monkeypatch.setattr("sys.argv", ["bench", "x/same", "y/same"])
    with pytest.raises(SystemExit):
        parse()


def test_what_the_log_says_of_linears(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a\n[x.py:1] sparse-export: 3 of 4 linears run sparse on ...; 1 dense\nb\n")
    assert told(log).startswith("3 of 4 linears")
    log.write_text("nothing")
    assert told(log) == ""
