"""what-if: its bytes are those of files, its times follow the ceilings, its command line works."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from backends.packed.pack import pack
from backends.packed.spec import PackedLinear
from backends.packed.values import ValueType
from bench import cli
from bench.shapes import find_shape
from bench.whatif import ceilings as ceilings_module
from bench.whatif.ceilings import Ceilings, Rate, l3_bytes
from bench.whatif.estimate import WhatIf, estimates
from bench.whatif.reads import DENSE, PATTERNS, Step, kept_values, packed_bytes, read_step

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": True,
}  # fmt: skip
MOE = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip


def folder(root: Path, config: dict[str, Any]) -> Path:
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("values", list(ValueType))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_bytes_are_those_of_a_packed_linear(values: ValueType, pattern: str) -> None:
    shape, draw = (96, 192), np.random.default_rng(2)
    kept = np.zeros(shape, np.bool_)
    kind, n, m = "ragged", 0, 0
    if pattern == DENSE:
        kind, kept = "dense", np.ones(shape, np.bool_)
    elif ":" in pattern:
        kind, (n, m) = "nm", tuple(map(int, pattern.split(":")))
        order = draw.random((shape[0], shape[1] // m, m)).argsort(axis=-1)
        kept = (order < n).reshape(shape)
    else:
        flat = draw.permutation(kept.size)[: kept_values(shape, pattern)]
        kept.reshape(-1)[flat] = True
    assert int(kept.sum()) == kept_values(shape, pattern)
    spec = PackedLinear(kind, values, shape, int(kept.sum()), n, m)  # type: ignore[arg-type]
    scales = np.ones((shape[0], 1), np.float32) if values.quantised else None
    parts = pack(spec, np.ones(shape, values.codes), kept, scales)
    real = sum(np.asarray(part).nbytes for part in parts.values())
    # Only how many tiles of ragged int4 end odd is a guess.
    slack = 9 if values is ValueType.INT4 and kind == "ragged" else 0
    assert abs(packed_bytes(shape, pattern, values) - real) <= slack


def test_a_step_reads_each_linear_the_head_and_one_row(tmp_path: Path) -> None:
    step = read_step(folder(tmp_path, CONFIG))
    kv = 32
    assert step.linears == {(64, 64): 4, (kv, 64): 4, (128, 64): 4, (64, 128): 2}
    assert step.dense_values == 100 * 64  # the head, which is the embedding
    assert step.dense == 2 * (100 * 64 + 64 + 5 * 64)  # and one row, and five norms
    assert step.kv == 2 * 2 * kv * 2
    assert step.largest == (128, 64)


def test_a_token_passes_two_experts_of_eight(tmp_path: Path) -> None:
    step = read_step(folder(tmp_path, MOE))
    assert step.linears[128, 64] == 2 * 2 * 2  # layers, gate and up, experts of a token
    assert step.linears[64, 128] == 2 * 2
    assert step.dense_values == (100 + 2 * 8) * 64  # head and both routers


def test_size_of_the_known_model() -> None:
    """1.1 B: what what-if calls linears, dense and row are all parameters but the norms' copies."""
    shape = find_shape("tinyllama-1.1b")
    from bench.whatif.reads import step_of
    from exporter.arch.spec import load_spec

    step = step_of(load_spec(shape.config()))
    norms = (2 * shape.layers + 1) * shape.hidden
    embedding = shape.vocab * shape.hidden
    assert step.weights + embedding + step.dense_values + norms == shape.parameters


def known(read: float = 10e9, operations: float = 1e12) -> Ceilings:
    rates = [
        Rate(values="bf16", pattern=p, bytes_per_second=8e9 if p == DENSE else 5e9)
        for p in PATTERNS
    ]
    return Ceilings(
        isa="avx2", threads=2, batch=1, l3_bytes=1, read_bytes_per_second=read,
        operations_per_second={"bf16": operations}, rates=rates,
    )  # fmt: skip


STEP = Step({(1024, 1024): 10}, dense=1 << 20, dense_values=1 << 19, kv=1000)


def test_bound_and_expectation_by_hand() -> None:
    dense, *_, eight = estimates(STEP, known(), [ValueType.BF16], 100)
    rest = (1 << 20) + 100 * 1000
    weights = 10 * 1024 * 1024 * 2
    assert dense.bytes == weights + rest
    assert dense.bound_seconds == pytest.approx((weights + rest) / 10e9)
    assert dense.expected_seconds == pytest.approx((weights + rest) / 8e9)
    assert dense.bound_by == "bytes" and dense.against_own_dense == 1.0
    packed = 10 * packed_bytes((1024, 1024), "2:8", ValueType.BF16)
    assert eight.expected_seconds == pytest.approx(packed / 5e9 + rest / 8e9)
    assert eight.against_own_dense == pytest.approx(dense.expected_seconds / eight.expected_seconds)
    assert eight.operations == 2 * (10 * 1024 * 1024 / 4 + (1 << 19))


def test_slow_multiplying_is_what_binds() -> None:
    found = estimates(STEP, known(operations=1e8), [ValueType.BF16], 100)
    assert {e.bound_by for e in found} == {"operations"}
    assert all(e.expected_seconds >= e.bound_seconds for e in found)


def test_more_zeros_are_fewer_bytes_and_a_higher_bound() -> None:
    found = estimates(STEP, known(), [ValueType.BF16], 100)
    ragged = [e.bound_tokens_per_second for e in found if e.pattern.endswith("%")]
    assert ragged == sorted(ragged) and len(set(ragged)) == 5


def test_without_bf16_all_stands_against_its_own_dense() -> None:
    given = known()
    rates = [r.model_copy(update={"values": "int8"}) for r in given.rates]
    given = given.model_copy(update={"rates": rates, "operations_per_second": {"int8": 1e12}})
    found = estimates(STEP, given, [ValueType.INT8], 100)
    assert all(e.against_own_dense == e.against_dense_bf16 for e in found)


def test_size_of_the_cache_is_read_or_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = tmp_path / "size"
    monkeypatch.setattr(ceilings_module, "_L3", size)
    assert l3_bytes() == 32 << 20
    size.write_text("16384K\n")
    assert l3_bytes() == 16 << 20
    size.write_text("odd\n")
    assert l3_bytes() == 32 << 20


def test_command_prints_and_writes_by_its_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ceilings_module, "l3_bytes", lambda: 1 << 18)  # small copies: a quick test
    out = tmp_path / "what-if.json"
    line = ["what-if", str(folder(tmp_path, CONFIG)), "--values", "bf16", "--rounds", "1",
            "--json", str(out)]  # fmt: skip
    assert cli.run(line) == 0
    text = capsys.readouterr().out
    assert "2:8" in text and "90%" in text and "GB/s" in text
    raw = json.loads(out.read_text())
    assert cli.run(["schema", "what-if"]) == 0
    jsonschema.validate(raw, json.loads(capsys.readouterr().out))
    result = WhatIf.model_validate(raw)
    assert [e.pattern for e in result.estimates] == list(PATTERNS)
    assert all(0 < e.bound_seconds <= e.expected_seconds for e in result.estimates)
    assert any("cache" in note for note in result.notes)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert cli.run(["what-if", str(tmp_path)]) == 2
    assert cli.run(["what-if", str(folder(tmp_path, {"model_type": "odd"}))]) == 2


def test_missing_kernels_are_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends.packed.kernels.library import Library

    monkeypatch.setattr(ceilings_module, "library", lambda: Library(tmp_path / "none.so"))
    assert cli.run(["what-if", str(folder(tmp_path, CONFIG))]) == 3
