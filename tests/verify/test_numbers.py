"""Planted faults in the engine: each is caught and named; near ties are accepted and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.reference.session import open_reference
from exporter.contract import Facts, Generation, Tolerance
from exporter.errors import VerificationFailed
from exporter.verify.numbers import check_numbers
from exporter.verify.prompts import Prompts, make_prompts
from exporter.verify.result import NumbersResult
from exporter.verify.selftest import SelfTest, record
from exporter.verify.truth import Spill, Stored, Truth
from tests.tiny import save_tiny
from tests.verify.fakes import Arrays, FakeSession, MemoryModel, arrays_of, memory_model

LOOSE = Tolerance(1e-4)
Ground = tuple[MemoryModel, SelfTest, Spill]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A model, the reference's answers on short prompts, and all of its logits."""
    folder = tmp_path_factory.mktemp("numbers")
    model = memory_model(save_tiny("llama2", folder, sparsity=0.5, tied=True))
    whole = make_prompts(None, model.spec.vocab, 256)
    prompts = Prompts(tuple(t[:17] for t in whole.tokens[:4]), 6, "random ids")
    spill, reference = Spill(folder, model.spec.vocab), open_reference(model)
    yield model, record(reference, prompts, spill), spill
    reference.close()
    spill.close()


def session(model: MemoryModel, change: Callable[[Arrays], None] | None = None) -> FakeSession:
    arrays = arrays_of(model)
    if change is not None:
        change(arrays)
    return FakeSession(model.checked.checkpoint.config, arrays, 256)


@pytest.mark.parametrize("stored", [False, True])
def test_sound_engine_passes(ground: Ground, stored: bool) -> None:
    model, test, spill = ground
    found = check_numbers(session(model), test, Stored(test) if stored else spill, LOOSE)
    assert found.failures == () and found.near_ties == ()
    assert found.prefill.positions == 5 + 9 + 16 + 17 and found.decode.positions == 4 * 5
    assert 0 < found.prefill.max_rel < 1e-5 and 0 < found.decode.max_rel < 1e-5
    assert found.prefill.top1 == found.decode.top1 == 1.0
    assert found.prefill.kl_max < 1e-8 and found.decode.kl_mean <= found.decode.kl_max
    assert [(p.tokens, p.compared, p.equal) for p in found.prompts] == [
        (n, 6, 6) for n in (5, 9, 16, 17)
    ]
    assert (found.engine, found.truth) == (
        "slow",
        "stored self-test" if stored else "live reference",
    )


def swap_qk(arrays: Arrays) -> None:
    q, k = (f"model.layers.0.self_attn.{r}_proj.weight" for r in "qk")
    arrays[q], arrays[k] = arrays[k], arrays[q]


def half_scale(arrays: Arrays) -> None:
    arrays["model.layers.1.mlp.up_proj.weight"] *= np.float32(0.5)


def untied(arrays: Arrays) -> None:
    arrays["lm_head.weight"] = np.roll(arrays["model.embed_tokens.weight"], 1, axis=0)


def transposed(arrays: Arrays) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    arrays[name] = arrays[name].T


def one_layer_in_bf16(arrays: Arrays) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    wide = arrays[name].view(np.uint32) & np.uint32(0xFFFF0000)
    arrays[name] = wide.view(np.float32)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("change", [swap_qk, half_scale, untied, transposed, one_layer_in_bf16])
def test_wrong_weights_leave_tolerance(ground: Ground, change: Any, stored: bool) -> None:
    model, test, spill = ground
    found = check_numbers(session(model, change), test, Stored(test) if stored else spill, LOOSE)
    assert any(f.startswith("prefill: relative error of logits") for f in found.failures)
    assert any(f.startswith("decode: relative error of logits") for f in found.failures)


class Wrapped:
    """A session with one fault."""

    def __init__(self, inner: FakeSession, **faults: Callable[..., Any]) -> None:
        self._inner, self._faults = inner, faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._inner, name)
        if name not in self._faults:
            return real
        return lambda *a, **k: self._faults[name](real(*a, **k))


def run(ground: Ground, engine: Any, stored: bool = False, limit: float = 1e-4) -> NumbersResult:
    _, test, spill = ground
    truth: Truth = Stored(test) if stored else spill
    return check_numbers(engine, test, truth, Tolerance(limit))


def poison(values: Any) -> Any:
    values[..., 3] = np.nan
    return values


@pytest.mark.parametrize("stored", [False, True])
def test_nan_is_named_with_its_place(ground: Ground, stored: bool) -> None:
    engine = Wrapped(session(ground[0]), prefill=poison)
    found = run(ground, engine, stored)
    assert found.failures[0] == (
        "prefill: NaN or infinite logits at 47 of 47 positions, first in prompt 0 at position 0"
    )
    assert found.prefill.max_rel == float("inf") and '"inf"' in found.model_dump_json()
    engine = Wrapped(session(ground[0]), decode=poison)
    assert any("decode: NaN" in f for f in run(ground, engine, stored).failures)


def test_one_value_for_all_tokens_is_named(ground: Ground) -> None:
    engine = Wrapped(session(ground[0]), prefill=np.zeros_like, decode=np.zeros_like)
    failures = run(ground, engine).failures
    assert any("prefill: the engine repeats one value for all tokens" in f for f in failures)
    assert any("decode: every step gave the same logits" in f for f in failures)


def test_engine_that_loses_its_cache(ground: Ground) -> None:
    inner = session(ground[0])

    class Forgetful(FakeSession):
        def decode(self, token: int) -> Any:
            self.decoder.reset()
            return super().decode(token)

    inner.__class__ = Forgetful
    failures = run(ground, inner).failures
    assert not any(f.startswith("prefill") for f in failures)
    assert any(f.startswith("decode: relative error") for f in failures)


def test_engine_that_is_one_position_late(ground: Ground) -> None:
    late = Wrapped(session(ground[0]), prefill=lambda rows: np.roll(rows, 1, axis=0))
    assert any(f.startswith("prefill: relative error") for f in run(ground, late).failures)


@pytest.mark.parametrize(
    "cut", [lambda v: v[..., :-1], lambda v: v.astype(np.float64), lambda v: v[..., None]]
)
def test_wrong_shape_or_type_is_named(ground: Ground, cut: Any) -> None:
    failures = run(ground, Wrapped(session(ground[0]), prefill=cut)).failures
    assert failures[0].startswith("prompt 0, prefill: logits of shape")


def generated(change: Callable[[list[int]], Sequence[int]]) -> Callable[[Generation], Generation]:
    return lambda g: Generation(tuple(change(list(g.tokens))), g.seconds)


def test_free_run_is_compared_by_itself(ground: Ground) -> None:
    def other(tokens: list[int]) -> list[int]:
        return [*tokens[:3], (tokens[3] + 1) % 272, *tokens[4:]]

    found = run(ground, Wrapped(session(ground[0]), generate=generated(other)))
    assert found.prefill.top1 == found.decode.top1 == 1.0
    assert [f.split(" is ")[0] for f in found.failures] == [
        f"prompt {i}: greedy token 3" for i in range(4)
    ]
    assert [(p.compared, p.equal) for p in found.prompts] == [(6, 3)] * 4


@pytest.mark.parametrize("odd", [-1, 272, 10**6])
def test_token_outside_the_vocabulary(ground: Ground, odd: int) -> None:
    engine = Wrapped(session(ground[0]), generate=generated(lambda t: [odd, *t[1:]]))
    assert "greedy token 0 is" in run(ground, engine, limit=1e9).failures[0]


def test_too_few_tokens(ground: Ground) -> None:
    engine = Wrapped(session(ground[0]), generate=generated(lambda t: t[:-1]))
    assert "5 greedy tokens, 6 were asked for" in run(ground, engine).failures[0]


class Table:
    """A model that looks its logits up by position: an engine and reference of our choosing."""

    max_tokens = 64

    def __init__(self, rows: Any) -> None:
        self.rows, self.at = np.asarray(rows, dtype=np.float32), 0

    def prefill(self, tokens: Sequence[int], *, logits: str = "all") -> Any:
        self.at = len(tokens)
        return self.rows[: self.at].copy()

    def decode(self, token: int) -> Any:
        self.at += 1
        return self.rows[self.at - 1].copy()

    def generate(self, tokens: Sequence[int], n: int) -> Generation:
        first = len(tokens) - 1
        best = self.rows[first : first + n].argmax(axis=1)
        return Generation(tuple(best.tolist()), tuple(range(n)))

    def facts(self) -> Facts:
        return Facts("table", "1", 1, None, 0, 0, 0.0)

    def close(self) -> None:
        pass


def table() -> Any:
    rows = np.zeros((8, 5), dtype=np.float32)
    rows[:, 1], rows[:, 2] = 10.0, 5.0
    return rows


@pytest.fixture
def tie(tmp_path: Path) -> Iterator[tuple[Any, SelfTest, Spill]]:
    """A reference that is undecided by 0.001 of 10 at position 5, a decode step."""
    rows = table()
    rows[5, 2] = 9.999
    spill = Spill(tmp_path, 5)
    yield rows, record(Table(rows), Prompts(((0, 0, 0),), 5, "random ids"), spill), spill
    spill.close()


@pytest.mark.parametrize("stored", [False, True])
def test_near_tie_is_accepted_reported_and_ends_the_run(tie: Any, stored: bool) -> None:
    rows, test, spill = tie
    engine = rows.copy()
    engine[5, 2] = 10.0005  # moved by 1.5e-3 = 1.5e-4 relative; the gap is 1e-3
    truth = Stored(test) if stored else spill
    found = check_numbers(Table(engine), test, truth, Tolerance(2e-4))
    assert found.failures == ()
    assert [(t.prompt, t.position, t.phase, t.reference, t.engine) for t in found.near_ties] == [
        (0, 5, "decode", 1, 2),
        (0, 5, "free run", 1, 2),
    ]
    assert found.near_ties[0].gap == pytest.approx(1e-3, rel=1e-3)
    assert found.near_ties[0].allowed == pytest.approx(4e-3)
    assert found.decode.top1 == 1.0 and found.decode.top1_near_ties == 1
    assert [(p.new_tokens, p.compared, p.equal) for p in found.prompts] == [(5, 3, 3)]


def test_the_same_token_is_a_failure_where_the_gap_is_wider(tie: Any) -> None:
    rows, test, spill = tie
    engine = rows.copy()
    engine[5, 2] = 10.0005
    found = check_numbers(Table(engine), test, spill, Tolerance(4e-5))  # 2 x 4e-4 < 1e-3
    assert found.near_ties == () and found.prompts[0].equal == 3
    assert found.prompts[0].compared == 5 and found.decode.top1 == 0.75
    assert any("best token differs at 1 of 4" in f for f in found.failures)
    assert any("greedy token 3 is 2, the reference's is 1" in f for f in found.failures)


def test_reference_whose_decode_ignores_the_cache_is_refused(tmp_path: Path) -> None:
    class Broken(Table):
        def decode(self, token: int) -> Any:
            return self.rows[0].copy()

    rows = table()
    rows[5, 3] = 20.0
    spill = Spill(tmp_path, 5)
    with pytest.raises(VerificationFailed) as caught:
        record(Broken(rows), Prompts(((0, 0, 0),), 5, "random ids"), spill)
    assert caught.value.code == "reference-broken" and "cached decode" in caught.value.found
    rows[4, 0] = np.nan
    with pytest.raises(VerificationFailed, match="NaN or infinite"):
        record(Table(rows), Prompts(((0, 0, 0),), 5, "random ids"), spill)
    spill.close()


def test_spill_gives_back_what_it_took(tmp_path: Path) -> None:
    spill, rows = Spill(tmp_path, 3), np.arange(30, dtype=np.float32).reshape(10, 3)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    for first, last in ((0, 4), (4, 10)):
        spill.begin_prompt()
        spill.add(rows[first : last - 1])
        spill.add(rows[last - 1 : last])
    assert (spill.read(0, 1, 3) == rows[1:4]).all() and (spill.read(1, 0, 6) == rows[4:]).all()
    assert spill.gap(1, 5, 0) == (2.0, 29.0)
    with pytest.raises(IndexError):
        spill.read(1, 0, 7)
    spill.close()
