"""Perplexity against a slow float64 reference; every token once; an artefact scores like torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from exporter.cli import run as export_run
from exporter.errors import InputRefused, UsageError, VerificationFailed
from harness.cli import run
from harness.evaluate.perplexity import nats_of, perplexity
from harness.evaluate.protocol import Protocol
from harness.evaluate.run import evaluate_folder
from harness.hf import load_tokenizer
from harness.text import load_text, token_ids
from tests.tiny import save_tiny


@given(st.integers(0, 90), st.integers(2, 20), st.data())
def test_each_token_is_scored_once_with_context(total, length, data):
    stride = data.draw(st.integers(1, length))
    spans = list(Protocol(length, stride).windows(total))
    scored = [i for _, last, start in spans for i in range(start, last)]
    assert len(scored) == len(set(scored))
    for first, last, start in spans:
        assert first < start < last <= min(total, first + length)
    if stride < length and total >= 2:
        assert scored == list(range(1, total))
        assert all(start - first >= length - stride for first, _, start in spans[1:])
    if stride == length:
        assert len(scored) == total // length * (length - 1)


def slowly(folder, ids, length, stride):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total = count = done = 0
    for first in range(0, len(ids), stride):
        part = ids[first : first + length]
        if len(part) < 2 or (len(part) < length and stride == length):
            break
        with torch.no_grad():
            rows = torch.log_softmax(model(input_ids=torch.tensor(part)[None]).logits[0], -1)
        for i in range(1, len(part)):
            if first + i >= done:
                total -= float(rows[i - 1, part[i]])
                count += 1
        done = first + len(part)
        if done == len(ids):
            break
    return np.exp(total / count), count


@pytest.mark.parametrize(("length", "stride"), [(32, None), (32, 8), (20, 20), (31, 30)])
def test_perplexity_is_the_slow_reference(tmp_path, length, stride):
    base = save_tiny("smollm2", tmp_path / "m")
    ids = token_ids(load_tokenizer(base), load_text("builtin"))[:150]
    done = evaluate_folder(base, "builtin", Protocol(length, stride, tokens=150))
    expected, count = slowly(base, ids, length, stride or length)
    assert done.score.perplexity == pytest.approx(expected, rel=1e-5)
    assert done.score.tokens == count
    assert done.record()["stride"] == (stride or length)


def test_likelihoods_are_those_of_torch_in_double():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((9, 40)) * 50).astype(np.float32)
    ids = rng.integers(0, 40, 9)
    want = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(), torch.from_numpy(ids[1:]), reduction="none"
    )
    np.testing.assert_allclose(nats_of(logits, ids), want.numpy(), rtol=1e-9)


def test_an_artefact_scores_what_torch_scores(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m", sparsity=0.5)
    out = tmp_path / "art"
    assert export_run([str(base), "--target", "onnxruntime", "-o", str(out)]) == 0
    protocol = Protocol(24, 12, tokens=100)
    there = evaluate_folder(out, "builtin", protocol, tokenizer=base)
    here = evaluate_folder(base, "builtin", protocol)
    assert there.score.perplexity == pytest.approx(here.score.perplexity, rel=1e-4)
    assert there.engine != here.engine


def test_the_command_prints_its_protocol_and_writes_json(tmp_path, capsys):
    base = save_tiny("smollm2", tmp_path / "m")
    words = ["eval", str(base), "--data", "builtin", "--length", "16", "--tokens", "64"]
    assert run([*words, "-o", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    assert "60 tokens scored, 4 windows of 16, stride 16, torch float32" in said
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["tokens"] == 60 and len(record["data_sha256"]) == 64


def test_likelihoods_that_are_nan_stop_it():
    with pytest.raises(VerificationFailed, match=r"values-not-finite[\s\S]*tokens 1 to 3"):
        perplexity(lambda ids: np.full(len(ids) - 1, np.nan), np.arange(8), Protocol(4))


def test_windows_longer_than_the_model_and_texts_too_short_are_refused(tmp_path):
    base = save_tiny("smollm2", tmp_path / "m")
    with pytest.raises(UsageError, match="the model's 256"):
        evaluate_folder(base, "builtin", Protocol(257))
    with pytest.raises(UsageError, match="stride"):
        evaluate_folder(base, "builtin", Protocol(16, 17))
    (tmp_path / "t.txt").write_text("tiny")
    with pytest.raises(InputRefused, match="data-invalid"):
        evaluate_folder(base, str(tmp_path / "t.txt"), Protocol(16))


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert run(["eval", str(tmp_path / "nothing"), "--data", "builtin"]) != 0
    told = capsys.readouterr().err
    assert "no such folder" in told and "Repo id" not in told
