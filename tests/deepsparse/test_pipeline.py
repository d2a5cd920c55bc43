"""The folder in the hands of its users: DeepSparse's own text-generation pipeline."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from backends.deepsparse.runtime import RUNTIME
from backends.deepsparse.target import DeepSparseTarget
from tests.deepsparse.lowered import greedy_of, lower
from tests.fused import fused_from
from tests.tiny import make_tiny

pytestmark = pytest.mark.deepsparse

PROGRAM = Path(__file__).with_name("pipeline_program.py")
SHORT = "Sparse models"
LONG = "A prompt of more than sixty-four bytes, so that the chunk engine runs at least once here."


def run_pipeline(folder: Path, n: int, *texts: str) -> dict[str, Any]:
    argv = [str(RUNTIME.interpreter()), "-I", "-B", str(PROGRAM), str(folder), str(n), *texts]
    done = subprocess.run(
        argv, capture_output=True, text=True, env=RUNTIME.environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["llama2", "qwen3"])
def test_the_pipeline_writes_what_the_reference_writes(kind: str, tmp_path: Path) -> None:
    model = lower(tmp_path / "out", kind, DeepSparseTarget(), sparsity=0.7)
    got = run_pipeline(tmp_path / "out", 12, SHORT, LONG)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text, ids, answer in zip((SHORT, LONG), got["ids"], got["answers"], strict=True):
        assert ids == tokenizer.encode(text).ids
        assert answer == tokenizer.decode(greedy_of(model, ids, 12), skip_special_tokens=True)


def test_a_tokenizer_of_today_reads_the_same_there(tmp_path: Path) -> None:
    """Merges as pairs and a class of transformers 5, as a checkpoint of today has them."""
    source = tmp_path / "source"
    source.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["</s>"]
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator([SHORT, LONG, "the the then there"] * 5, trainer)
    tokenizer.save(str(source / "tokenizer.json"))
    merges = json.loads((source / "tokenizer.json").read_text())["model"]["merges"]
    assert merges and isinstance(merges[0], list)
    config = {
        "tokenizer_class": "TokenizersBackend",
        "model_max_length": 256,
        "eos_token": special[0],
    }
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    DeepSparseTarget().lower(fused_from(make_tiny("llama2"), root=source), out, lambda *_: None)
    got = run_pipeline(out, 2, SHORT, LONG)
    assert got["ids"] == [tokenizer.encode(text).ids for text in (SHORT, LONG)]
    assert len(got["ids"][1]) < len(LONG)  # merges were used
