"""Writing and strict reading of `.sparse-export/selftest.safetensors`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from exporter.errors import InputRefused, VerificationFailed
from exporter.store.dtypes import DType
from exporter.store.header import Header, TensorEntry, read_header
from exporter.store.plainfile import open_plain, read_at
from exporter.store.writer import write_safetensors
from exporter.verify.prompts import Prompts
from exporter.verify.result import round_figure
from exporter.verify.selftest import SelfTest

NAME = "selftest.safetensors"
SCHEMA = "1"
_DTYPES = {
    "prompt_tokens": DType.I32,
    "prompt_lengths": DType.I32,
    "greedy": DType.I32,
    "top_ids": DType.I32,
    "top_logits": DType.F32,
    "logsumexp": DType.F32,
    "peak": DType.F32,
    "last_prefill": DType.F32,
    "last_decode": DType.F32,
}
_SPREAD = "spread"  # only where some position needed it
_MOST_TOKENS = 1 << 20


def write_selftest(path: Path, test: SelfTest) -> None:
    """Write `test`; equal self-tests give equal bytes.

    Raises:
        InputRefused: `output-failed`.
    """
    lengths = [len(t) for t in test.prompts.tokens]
    flat = [t for tokens in test.prompts.tokens for t in tokens]
    write_safetensors(
        path,
        {
            "prompt_tokens": np.array(flat, dtype=np.int32),
            "prompt_lengths": np.array(lengths, dtype=np.int32),
            **{k: getattr(test, k) for k in list(_DTYPES)[2:]},
            **({} if test.spread is None else {_SPREAD: test.spread}),
        },
        metadata={
            "schema": SCHEMA,
            "prompts": test.prompts.kind,
            "cache_gap": repr(round_figure(test.cache_gap)),
        },
    )


def read_selftest(path: Path) -> SelfTest:
    """Read strictly: nothing of the file is believed before it is checked.

    Raises:
        VerificationFailed: `manifest-invalid`, or what is wrong with the safetensors header.
    """
    try:
        header = read_header(path)
        _check_header(header)
        parts = {name: _load(path, entry) for name, entry in header.entries.items()}
    except InputRefused as error:
        raise VerificationFailed(
            error.code, error.found, expected=error.expected, file=NAME, tensor=error.tensor
        ) from None
    kind, gap = _metadata(header)
    lengths, greedy = parts["prompt_lengths"], parts["greedy"]
    if lengths.min() < 1 or lengths.sum() != len(parts["prompt_tokens"]):
        _refuse("the lengths of the prompts do not add up", "prompt_lengths")
    cuts = np.cumsum(lengths)[:-1].tolist()
    tokens = tuple(tuple(map(int, p)) for p in np.split(parts["prompt_tokens"], cuts))
    rest: dict[str, Any] = {k: v for k, v in parts.items() if not k.startswith("prompt_")}
    test = SelfTest(Prompts(tokens, greedy.shape[1], kind), cache_gap=gap, **rest)
    _check_values(test)
    return test


def _check_header(header: Header) -> None:
    odd = sorted((set(header.entries) - {_SPREAD}) ^ set(_DTYPES))
    if odd:
        _refuse("a tensor is missing or unknown", odd[0])
    for name in header.entries:
        dtype = _DTYPES.get(name, DType.F32)
        if header.entries[name].dtype is not dtype:
            _refuse(f"type {header.entries[name].dtype.value}", name, dtype.value)
    shape = {name: entry.shape for name, entry in header.entries.items()}
    if any(len(shape[n]) != 1 for n in ("prompt_tokens", "prompt_lengths")):
        _refuse("prompts of more than one axis", "prompt_tokens")
    if len(shape["greedy"]) != 2 or len(shape["top_ids"]) != 2 or len(shape["last_prefill"]) != 1:
        _refuse("a table with too few or too many axes", "greedy")
    count, new = shape["prompt_lengths"][0], shape["greedy"][1]
    rows, top = shape["top_ids"]
    vocab = shape["last_prefill"][0]
    want = {
        "greedy": (count, new),
        "top_logits": (rows, top),
        "logsumexp": (rows,),
        "peak": (rows,),
        "last_decode": (vocab,),
        _SPREAD: (rows,),
    }
    for name, expected in want.items():
        if shape.get(name, expected) != expected:
            _refuse(f"shape {list(shape[name])}", name, str(list(expected)))
    if count < 1 or new < 2 or not 1 <= top <= vocab:
        _refuse("an empty table", "greedy")
    if rows != shape["prompt_tokens"][0] + count * (new - 1) or rows > _MOST_TOKENS:
        _refuse(f"{rows} rows of logits", "top_ids", "one for each token fed")


def _load(path: Path, entry: TensorEntry) -> NDArray[Any]:
    fd = open_plain(path, NAME)
    try:
        raw = read_at(fd, entry.start, entry.nbytes, NAME)
    finally:
        os.close(fd)
    return np.frombuffer(raw, dtype=entry.dtype.numpy).reshape(entry.shape)


def _metadata(header: Header) -> tuple[Literal["text", "random ids"], float]:
    meta = header.metadata
    kind, gap = meta.get("prompts"), meta.get("cache_gap", "")
    if meta.get("schema") != SCHEMA or kind not in ("text", "random ids"):
        _refuse(f"metadata {dict(meta)}", None, f"schema {SCHEMA}")
    try:
        return kind, float(gap)
    except ValueError:
        _refuse(f"cache_gap {gap!r}", None, "a number")


def _check_values(test: SelfTest) -> None:
    tokens = np.array([t for p in test.prompts.tokens for t in p])
    for name, ids in (
        ("prompt_tokens", tokens),
        ("greedy", test.greedy),
        ("top_ids", test.top_ids),
    ):
        if ids.min() < 0 or ids.max() >= test.vocab:
            _refuse(f"token ids from {ids.min()} to {ids.max()}", name, f"below {test.vocab}")
    for name in ("top_logits", "logsumexp", "peak", "last_prefill", "last_decode"):
        if not np.isfinite(getattr(test, name)).all():
            _refuse("NaN or infinity", name)
    if test.spread is not None and not ((test.spread >= 0) & np.isfinite(test.spread)).all():
        _refuse("a spread that is no distance", _SPREAD, "0 or more, finite")
    if (np.diff(test.top_logits, axis=1) > 0).any():
        _refuse("logits that are not in order", "top_logits", "best first")
    ends = [start - 1 for start in test.starts()[1:]]
    if (test.top_ids[ends, 0] != test.greedy[:, -1]).any():
        _refuse("greedy tokens that are not the best of their rows", "greedy")


def _refuse(found: str, tensor: str | None, expected: str | None = None) -> NoReturn:
    raise VerificationFailed("manifest-invalid", found, expected=expected, file=NAME, tensor=tensor)
