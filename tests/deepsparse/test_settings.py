"""Which sequence lengths, chunks and caches DeepSparse is ever asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.deepsparse.settings import (
    SETTINGS_FILE,
    Settings,
    chunk_fits,
    internal_cache_fits,
    read_settings,
    resolve,
)
from exporter.arch.spec import DecoderSpec, load_spec
from exporter.errors import EngineUnfit, UsageError
from tests.tiny import tiny_config


def spec(positions: int = 8192, head_dim: int = 64, window: int | None = None) -> DecoderSpec:
    config = {**tiny_config("smollm2").to_dict(), "architectures": ["LlamaForCausalLM"]}
    made = load_spec(config)
    return replace(made, max_positions=positions, head_dim=head_dim, sliding_window=window)


# What the engine did on random decoders, against onnxruntime: head size -> right or not.
MEASURED_HEADS = {
    **dict.fromkeys((4, 8, 12, 16, 20, 24, 32, 40, 48, 56, 64, 128, 192, 256, 320), True),
    **dict.fromkeys((72, 80, 96, 112, 160), False),
}
# (chunk, sequence length) -> right or not, with the engine's own cache.
MEASURED_CHUNKS = {
    **dict.fromkeys(((4, 128), (8, 128), (12, 128), (32, 128), (48, 128), (16, 64)), True),
    **dict.fromkeys(((64, 192), (64, 256), (64, 512), (128, 320), (128, 512), (192, 512)), True),
    **dict.fromkeys(((256, 1024), (16, 1024)), True),
    **dict.fromkeys(((32, 64), (64, 128), (96, 128), (256, 512), (512, 1024)), False),
    **dict.fromkeys(((160, 512), (160, 320)), False),
}


def test_rules_are_what_was_measured() -> None:
    assert {d: internal_cache_fits(d) for d in MEASURED_HEADS} == MEASURED_HEADS
    assert {c: chunk_fits(*c, internal=True) for c in MEASURED_CHUNKS} == MEASURED_CHUNKS


def test_an_outside_cache_takes_any_chunk_the_pipeline_takes() -> None:
    assert all(chunk_fits(c, 128, internal=False) for c in (1, 4, 64, 96, 124))
    assert not any(chunk_fits(c, 128, internal=False) for c in (0, -4, 2, 6, 128, 256))


@pytest.mark.parametrize(
    ("positions", "window", "want"),
    [
        (8192, None, Settings(1024, 64, True)),
        (8192, 700, Settings(640, 64, True)),
        (300, None, Settings(256, 64, True)),
        (192, None, Settings(192, 64, True)),
        (128, None, Settings(128, 16, True)),
        (64, None, Settings(64, 16, True)),
    ],
)
def test_defaults(positions: int, window: int | None, want: Settings) -> None:
    assert resolve(spec(positions, window=window), None, None, "auto") == want
    assert want.max_tokens == want.sequence_length - 1


def test_a_head_size_the_inner_cache_gets_wrong() -> None:
    auto = resolve(spec(head_dim=80), None, None, "auto")
    assert auto == Settings(1024, 64, False)
    assert auto.cache == "external" and auto.max_tokens == 1024
    with pytest.raises(UsageError) as caught:
        resolve(spec(head_dim=80), None, None, "internal")
    assert caught.value.code == "target-option" and "heads of 80" in caught.value.found


@pytest.mark.parametrize(
    ("length", "chunk", "says"),
    [
        (100, None, "sequence_length=100"),
        (-64, None, "sequence_length=-64"),
        (0, None, "sequence_length=0"),
        (256, 0, "prefill_chunk=0"),
        (8256, None, "up to 8192"),
        (None, 6, "prefill_chunk=6"),
        (None, 1024, "prefill_chunk=1024"),
        (128, 64, "prefill_chunk=64"),
        (512, 96, "prefill_chunk=96"),
    ],
)
def test_options_the_engine_gets_wrong(length: int | None, chunk: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        resolve(spec(), length, chunk, "auto")
    assert caught.value.code == "target-option" and caught.value.exit_code == 2


@given(st.integers(64, 200_000), st.integers(1, 40).map(lambda x: 8 * x))
def test_defaults_are_always_allowed(positions: int, head_dim: int) -> None:
    made = resolve(spec(positions, head_dim), None, None, "auto")
    assert made.sequence_length <= min(positions, 1024) and made.sequence_length % 64 == 0
    assert chunk_fits(made.prompt_sequence_length, made.sequence_length, made.internal_kv_cache)
    assert made.internal_kv_cache == internal_cache_fits(head_dim)


def test_the_file_holds_the_arguments_of_the_pipeline(tmp_path: Path) -> None:
    made = Settings(256, 64, True)
    (tmp_path / SETTINGS_FILE).write_bytes(made.as_json())
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {
        "sequence_length": 256,
        "prompt_sequence_length": 64,
        "internal_kv_cache": True,
    }
    assert read_settings(tmp_path) == made


GOOD = {"sequence_length": 256, "prompt_sequence_length": 64, "internal_kv_cache": True}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        "[" * 4000,
        json.dumps({**GOOD, "sequence_length": 250}),
        json.dumps({**GOOD, "sequence_length": 0}),
        json.dumps({**GOOD, "sequence_length": "256"}),
        json.dumps({**GOOD, "sequence_length": True}),
        json.dumps({**GOOD, "prompt_sequence_length": 128}),
        json.dumps({**GOOD, "prompt_sequence_length": 64.0}),
        json.dumps({**GOOD, "internal_kv_cache": 1}),
        json.dumps({**GOOD, "engine_type": "onnxruntime"}),
    ],
)
def test_a_file_that_is_not_ours(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(EngineUnfit) as caught:
        read_settings(tmp_path)
    assert caught.value.code == "engine-refused" and caught.value.file == SETTINGS_FILE
