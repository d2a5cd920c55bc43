"""Training text: what each kind of source gives, and what is refused by name."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import load_dataset_builder

from exporter.errors import InputRefused, UsageError
from harness.cli import run
from harness.documents import documents, joined_ids
from harness.evaluate.protocol import Protocol
from harness.evaluate.run import evaluate_folder
from harness.hf import load_tokenizer
from harness.prune.run import Calibration, prune_folder
from harness.prune.sparsity import Unstructured
from harness.text import BUILTIN, load_text, token_ids
from tests.tiny import VOCAB, save_tiny


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
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", _asks)
    with pytest.raises(InputRefused) as refusal:
        documents("nobody/no-such-data@all:train", "text")
    assert refusal.value.code == "input-missing"
    assert "nobody/no-such-data" in str(refusal.value)


def _asks(*_: object, **__: object) -> None:
    pytest.fail("the hub was asked")


def test_a_data_set_of_the_cache_is_read_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that `load_dataset("nobody/words")` leaves in the cache."""
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n')
    builder = load_dataset_builder(
        "json", data_files=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "made")
    )
    builder.download_and_prepare()
    cached = tmp_path / "cache" / "nobody___words" / "default" / "0.0.0" / "abc"
    shutil.copytree(builder.cache_dir, cached)
    (cached / "json-train.arrow").rename(cached / "words-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps({**info, "dataset_name": "words"}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # whatever was imported before
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", _asks)
    assert documents("nobody/words", "text") == ["one", "two"]
    assert documents("nobody/words@default:train", "text") == ["one", "two"]
    assert not datasets.config.HF_HUB_OFFLINE


def test_json_lines_and_ids_for_pruning_and_perplexity(tmp_path: Path) -> None:
    """One text as a line, or the ids that it is, are that text; several are joined by the end."""
    model = save_tiny("smollm2", tmp_path / "m")
    text, words = load_text(BUILTIN)[:3000], load_tokenizer(model)
    (tmp_path / "d.txt").write_text(text)
    (tmp_path / "d.jsonl").write_text(json.dumps({"body": text}))
    (tmp_path / "d.json").write_text(json.dumps(token_ids(words, text).tolist()))
    found = {}
    for name in ("d.txt", "d.jsonl", "d.json"):
        used = Calibration(str(tmp_path / name), 4, 16, field="body")
        done = prune_folder(model, tmp_path / f"{name}.out", "wanda", Unstructured(0.5), used)
        found[name] = done.data_sha256
    assert len(set(found.values())) == 1
    scores = [
        evaluate_folder(model, str(tmp_path / name), Protocol(32, tokens=100), field="body")
        for name in ("d.txt", "d.jsonl")
    ]
    assert scores[0].score == scores[1].score
    assert joined_ids(words, ["a", "b"]).tolist() == [
        *words("a").input_ids,
        2,
        *words("b").input_ids,
        2,
    ]


def test_ids_prune_a_model_without_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny("smollm2", tmp_path / "m")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (model / file).unlink()
    ids = np.random.default_rng(0).integers(0, VOCAB, (8, 16))
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    words = ["prune", str(model), "--sparsity", "0.5", "--length", "16", "--samples", "4"]
    assert run([*words, "--data", str(tmp_path / "ids.json"), "-o", str(tmp_path / "out")]) == 0
    assert run([*words, "--data", "random", "-o", str(tmp_path / "by-random")]) == 0
    assert "peak memory" in capsys.readouterr().out
    for out in ("out", "by-random"):
        record = json.loads((tmp_path / out / "masks" / "prune.json").read_text())
        assert record["sparsity"] == pytest.approx(0.5)
    assert run([*words, "--data", str(tmp_path / "no.json"), "-o", str(tmp_path / "o2")]) == 3
    (tmp_path / "big.json").write_text(json.dumps([VOCAB] * 64))
    assert run([*words, "--data", str(tmp_path / "big.json"), "-o", str(tmp_path / "o3")]) == 3


def test_a_data_set_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"datasets is not installed[\s\S]*sparse-export\[tune\]"):
        documents("nobody/no-such-data", "text")
