"""Served load: the client's command line, its file made a result, and vLLM's own client at work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.attribution import count_foreign, take_prompts
from bench.served import Load, client_options, measure_served, served_result
from exporter.errors import EngineUnfit, InputRefused
from tests.bench.openai_server import Manner, served
from tests.tiny import save_tiny


def load(**more: Any) -> Load:
    given: dict[str, Any] = {"requests": 4, **more}
    return Load("http://127.0.0.1:9/v1", "toy", Path("tok"), new_tokens=3, **given)


def detailed(**more: Any) -> dict[str, Any]:
    """Four requests: two good, a slow one, a lost one."""
    raw = {
        "duration": 2.0,
        "start_times": [0.0, 0.1, 0.2, 0.3],
        "ttfts": [0.01, 0.02, 0.50, 0.0],
        "itls": [[0.01, 0.03], [0.02, 0.02], [0.02, 0.02], []],
        "input_lens": [5, 5, 5, 5],
        "output_lens": [3, 3, 2, 0],
        "errors": ["", "", "", "Traceback: reset"],
    }
    return {**raw, **more}


def test_loops_are_asked_for_as_the_client_takes_them() -> None:
    closed, opened = (
        client_options(load(), Path("/o/r.json")),
        client_options(load(rate=2.5), Path("/o/r.json")),
    )
    text = " ".join(closed)
    assert "--base-url http://127.0.0.1:9 --endpoint /v1/completions" in text
    assert "--request-rate inf --max-concurrency 8" in text
    assert "--request-rate 2.5 --burstiness 1.0" in " ".join(opened)
    assert "--max-concurrency" not in opened
    real = " ".join(client_options(load(prompts=Path("p.jsonl")), Path("/o/r.json")))
    assert "--dataset-name custom --dataset-path p.jsonl" in real and "random" not in real


def test_figures_come_from_the_requests() -> None:
    found = served_result(detailed(), load(slo_ttft_ms=100.0, slo_tpot_ms=50.0), "client")
    assert (found.sent, found.answered, found.lost, found.short) == (4, 3, 1, 1)
    figures = {f.metric: f for f in found.figures}
    assert figures["ttft"].value == 0.02 and figures["ttft"].n == 3
    assert figures["tpot"].value == pytest.approx(0.02)
    assert figures["requests_per_second"].value == 1.5
    assert figures["goodput"].value == 1.0  # the one of 500 ms misses
    assert [p.value is None for p in figures["ttft"].percentiles] == [False, True, True, True]
    assert found.errors == ["Traceback: reset"] and found.loop == "closed"


def test_a_server_that_answers_nothing_is_not_a_result() -> None:
    with pytest.raises(EngineUnfit, match="no request was answered: refused"):
        served_result(detailed(output_lens=[0] * 4, errors=["refused"] * 4), load(), "client")


def test_a_client_is_run_and_its_failures_are_typed(tmp_path: Path) -> None:
    program = _plain(tmp_path)
    found = measure_served(load(), client=[sys.executable, str(program)])
    assert found.answered == 3 and str(tmp_path) not in found.model_dump_json()
    program.write_text("import sys; sys.exit('no route')")
    with pytest.raises(EngineUnfit, match="no route"):
        measure_served(load(), client=[sys.executable, str(program)])
    program.write_text("")
    with pytest.raises(EngineUnfit, match="no result"):
        measure_served(load(), client=[sys.executable, str(program)])
    with pytest.raises(EngineUnfit, match="engine-missing"):
        measure_served(load(), client=[str(tmp_path / "none")])
    program.write_text("import time; time.sleep(60)")
    with pytest.raises(EngineUnfit, match="engine-timeout"):
        measure_served(load(timeout=0.3), client=[sys.executable, str(program)])


def test_answers_of_another_request_are_counted(tmp_path: Path) -> None:
    """A client that hands the first two of four answers to one another; the last one is lost."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Request {i}."}) + "\n" for i in range(3)))
    texts = ["Request 1. a", "Request 0. a", "Request 2. a", ""]
    program = tmp_path / "client.py"
    program.write_text(
        "import sys, pathlib\n"
        "out = dict(zip(sys.argv, sys.argv[1:]))\n"
        f"text = {json.dumps(json.dumps(detailed(generated_texts=texts)))}\n"
        "pathlib.Path(out['--result-dir'], out['--result-filename']).write_text(text)\n"
        f"pathlib.Path({str(tmp_path / 'sent')!r}).write_text(\n"
        "    pathlib.Path(out['--dataset-path']).read_text())\n"
        "assert out['--extra-body'] == '{\"echo\": true}' and '--disable-shuffle' in out\n"
    )
    found = measure_served(load(prompts=prompts), client=[sys.executable, str(program)])
    assert (found.foreign, found.lost) == (2, 1)
    sent = [json.loads(line)["prompt"] for line in (tmp_path / "sent").read_text().splitlines()]
    assert sent == ["Request 0.", "Request 1.", "Request 2.", "Request 0."]  # as many as asked for
    assert count_foreign(["a", "b"], ["x", "y"], ["", ""]) is None  # a server without echo
    assert measure_served(load(), client=[sys.executable, str(_plain(tmp_path))]).foreign is None


def _plain(folder: Path) -> Path:
    program = folder / "plain.py"
    program.write_text(
        "import sys, pathlib\n"
        "out = dict(zip(sys.argv, sys.argv[1:]))\n"
        f"text = {json.dumps(json.dumps(detailed()))}\n"
        "pathlib.Path(out['--result-dir'], out['--result-filename']).write_text(text)\n"
    )
    return program


@pytest.mark.parametrize("text", ["", "{", '{"text": "a"}\n', '{"prompt": 3}\n', "[]\n"])
def test_prompts_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(InputRefused, match="input-unreadable"):
        take_prompts(path, 2)
    path.write_text(text)
    with pytest.raises(InputRefused, match="json-invalid"):
        take_prompts(path, 2)


@pytest.mark.vllm
@pytest.mark.slow
def test_vllms_client_measures_a_server_of_known_speed(tmp_path: Path) -> None:
    tokenizer = save_tiny("llama2", tmp_path / "model")
    manner = Manner(ttft=0.1, gap=0.02)
    with served(manner) as url:
        what = Load(url, "toy", tokenizer, requests=16, concurrency=8, prompt_tokens=8,
                    new_tokens=12, slo_ttft_ms=1e5)  # fmt: skip
        found = measure_served(what)
    assert (found.sent, found.answered, found.lost, found.short) == (16, 16, 0, 0)
    figures = {f.metric: f for f in found.figures}
    ttft, tpot = figures["ttft"].value, figures["tpot"].value
    assert ttft is not None and 0.1 <= ttft < 0.5
    assert tpot is not None and 0.019 <= tpot < 0.06
    assert all(asked["stream"] and asked["max_tokens"] == 12 for asked in manner.seen)
