"""The self-test's summary, its file, and the strict reading of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from exporter.errors import VerificationFailed
from exporter.verify.prompts import Prompts
from exporter.verify.rows import logsumexp
from exporter.verify.selftest import SelfTest, best_ids, row_starts
from exporter.verify.selftest_file import read_selftest, write_selftest

META = {"schema": "1", "prompts": "text", "cache_gap": "1e-06"}


def make(vocab: int = 40, top: int = 32) -> SelfTest:
    prompts = Prompts(((1, 2, 3), (4, 5), (6, 7, 8, 9)), 3, "text")
    count = row_starts(prompts)[-1]
    logits = np.random.default_rng(0).normal(size=(count, vocab)).astype(np.float32)
    ids = np.stack([best_ids(row, top) for row in logits])
    ends = [s - 1 for s in row_starts(prompts)[1:]]
    greedy = np.stack([ids[e - 2 : e + 1, 0] for e in ends])
    return SelfTest(
        prompts=prompts,
        greedy=greedy,
        top_ids=ids,
        top_logits=np.take_along_axis(logits, ids.astype(int), axis=1),
        logsumexp=logsumexp(logits).astype(np.float32),
        peak=np.abs(logits).max(axis=1),
        last_prefill=logits[12],
        last_decode=logits[14],
        cache_gap=1e-6,
    )


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    count=st.integers(1, 40),
)
def test_best_ids_are_a_stable_sort(values: list[int], count: int) -> None:
    row = np.array(values, dtype=np.float32)
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert best_ids(row, count).tolist() == want
    assert best_ids(row, count)[0] == row.argmax()


def test_rows_of_each_prompt() -> None:
    assert make().starts() == (0, 5, 9, 15) and make().start(2) == 9


def test_file_gives_back_what_went_in(tmp_path: Path) -> None:
    test, path = make(), tmp_path / "selftest.safetensors"
    write_selftest(path, test)
    again = read_selftest(path)
    assert again.prompts == test.prompts and again.cache_gap == test.cache_gap
    assert again.spread is None
    for field in fields(SelfTest)[1:-2]:
        want, got = getattr(test, field.name), getattr(again, field.name)
        assert want.dtype == got.dtype and (want == got).all(), field.name
    assert load_file(path).keys() >= {"greedy", "top_ids"}  # any safetensors reader reads it
    first = path.read_bytes()
    path.unlink()
    write_selftest(path, make())
    assert path.read_bytes() == first


def test_spread_goes_along_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "selftest.safetensors"
    spread = np.linspace(0, 1e-3, make().starts()[-1], dtype=np.float32)
    write_selftest(path, replace(make(), spread=spread))
    again = read_selftest(path).spread
    assert again is not None and again.dtype == np.float32 and (again == spread).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros(14, np.float32), "shape"),
        (np.zeros(15, np.float64), "type F64"),
        (np.full(15, -1.0, np.float32), "no distance"),
        (np.full(15, np.nan, np.float32), "no distance"),
    ],
)
def test_damaged_spread_is_refused(value: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "selftest.safetensors"
    write_selftest(path, make())
    save_file({**load_file(path), "spread": value}, path, metadata=META)
    with pytest.raises(VerificationFailed, match=words):
        read_selftest(path)


def test_size_of_a_real_one_is_small() -> None:
    """SmolLM2: 8 prompts, 492 tokens, vocabulary 49152, beside 540 MB of tensors."""
    rows = 492 + 8 * 31
    size = rows * 32 * 8 + rows * 8 + 2 * 49152 * 4 + 4 * (492 + 8 + 8 * 32)
    assert size < 0.0012 * 540e6


def change(name: str, function: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts.update({name: np.ascontiguousarray(function(parts[name]))})


def spoil(index: tuple[int, ...] | int, value: Any) -> Callable[[Any], Any]:
    def function(values: Any) -> Any:
        values = values.copy()
        values[index] = value
        return values

    return function


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.pop("greedy"), "missing or unknown"),
        (lambda p: p.update(odd=np.zeros(1, np.float32)), "missing or unknown"),
        (change("greedy", lambda v: v.astype(np.int64)), "type I64"),
        (change("top_logits", lambda v: v.astype(np.float16)), "type F16"),
        (change("top_logits", lambda v: v[:-1]), "shape"),
        (change("logsumexp", lambda v: v[:-1]), "shape"),
        (change("last_decode", lambda v: v[:-1]), "shape"),
        (change("greedy", lambda v: v[0]), "axes"),
        (change("prompt_tokens", lambda v: v[:, None]), "more than one axis"),
        (change("prompt_tokens", lambda v: v[:-1]), "rows of logits"),
        (change("prompt_lengths", spoil(0, 2)), "do not add up"),
        (change("prompt_lengths", lambda v: np.array([0, 5, 4], np.int32)), "do not add up"),
        (change("prompt_tokens", spoil(0, 40)), "token ids"),
        (change("greedy", spoil((0, 0), -1)), "token ids"),
        (change("top_ids", spoil((3, 3), 10**6)), "token ids"),
        (change("top_logits", spoil((0, 0), np.nan)), "NaN"),
        (change("last_prefill", spoil(0, np.inf)), "NaN"),
        (change("top_logits", lambda v: v[:, ::-1]), "not in order"),
        (change("greedy", lambda v: (v + 1) % 40), "not the best"),
    ],
)
def test_damaged_content_is_refused(damage: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "selftest.safetensors"
    write_selftest(path, make())
    parts = load_file(path)
    damage(parts)
    save_file(parts, path, metadata=META)
    with pytest.raises(VerificationFailed) as caught:
        read_selftest(path)
    assert caught.value.code == "manifest-invalid" and words in caught.value.found


@pytest.mark.parametrize(
    "metadata",
    [None, {**META, "schema": "2"}, {**META, "prompts": "?"}, {**META, "cache_gap": "small"}],
)
def test_damaged_metadata_is_refused(metadata: Any, tmp_path: Path) -> None:
    path = tmp_path / "selftest.safetensors"
    write_selftest(path, make())
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(VerificationFailed) as caught:
        read_selftest(path)
    assert caught.value.code == "manifest-invalid"


@pytest.mark.parametrize("cut", [0, 4, 200, -1])
def test_cut_or_absent_file_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "selftest.safetensors"
    write_selftest(path, make())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VerificationFailed):
        read_selftest(path)
    path.unlink()
    with pytest.raises(VerificationFailed):
        read_selftest(path)
