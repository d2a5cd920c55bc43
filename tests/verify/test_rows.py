"""Distances of logits against their definitions, and the stored truth against the full one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.verify import rows
from exporter.verify.rows import compare_full, compare_stored, logsumexp


def draw(seed: int, shape: tuple[int, int], scale: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def slow_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    p, q = np.exp(p_logits.astype(float)), np.exp(q_logits.astype(float))
    p, q = p / p.sum(), q / q.sum()
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 7), width=st.integers(2, 60))
def test_full_comparison_is_the_definition(seed: int, count: int, width: int) -> None:
    want, got = draw(seed, (count, width)), draw(seed + 1, (count, width))
    found = compare_full(want, got)
    for t in range(count):
        error = float(np.abs(want[t].astype(float) - got[t]).max())
        assert found.max_abs[t] == error
        assert found.max_rel[t] == error / float(np.abs(want[t]).max())
        assert found.kl[t] == pytest.approx(slow_kl(want[t], got[t]), rel=1e-9, abs=1e-12)
        assert (found.want[t], found.got[t]) == (want[t].argmax(), got[t].argmax())
        assert found.gap[t] == float(want[t].max()) - float(want[t][got[t].argmax()])


def test_chunks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    want, got = draw(1, (9, 40)), draw(2, (9, 40))
    whole = compare_full(want, got)
    monkeypatch.setattr(rows, "_CHUNK", 80)
    parts = compare_full(want, got)
    for name in rows.Rows.__dataclass_fields__:
        assert (getattr(whole, name) == getattr(parts, name)).all(), name


def test_not_finite_and_flat_rows_are_marked() -> None:
    want, got = draw(1, (4, 8)), draw(1, (4, 8))
    got[1, 3], got[2, 0] = np.nan, np.inf
    got[3] = 5.0
    found = compare_full(want, got)
    assert found.finite.tolist() == [True, False, False, True]
    assert found.flat.tolist() == [False, False, False, True]
    assert found.got[1] == -1 and np.isinf(found.max_rel[1]) and np.isinf(found.kl[1])
    assert found.max_abs[0] == 0 and found.kl[0] == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]))
def test_stored_comparison_is_a_bound_from_below(seed: int, noise: float) -> None:
    """What `verify OUT` sees is never more than the live check saw: a sound artefact passes."""
    want = draw(seed, (5, 80))
    got = (want + draw(seed + 1, (5, 80), noise)).astype(np.float32)
    ids = np.argsort(-want, axis=1, kind="stable")[:, :16]
    tops = np.take_along_axis(want, ids, axis=1)
    full = compare_full(want, got)
    part = compare_stored(ids, tops, logsumexp(want), np.abs(want).max(axis=1).astype(float), got)
    assert (part.max_abs <= full.max_abs * (1 + 1e-9) + 1e-12).all()
    assert (part.kl <= full.kl + 1e-9).all()  # merging outcomes can only lower KL
    assert (part.want == full.want).all() and (part.got == full.got).all()
    known = np.isfinite(part.gap)
    assert np.allclose(part.gap[known], full.gap[known])


def test_stored_comparison_sees_an_error_outside_the_stored_tokens() -> None:
    want = draw(3, (1, 80))
    ids = np.argsort(-want, axis=1, kind="stable")[:, :16]
    tops = np.take_along_axis(want, ids, axis=1)
    got = want.copy()
    got[0, int(want.argmin())] = 50.0
    found = compare_stored(ids, tops, logsumexp(want), np.abs(want).max(axis=1).astype(float), got)
    assert found.max_abs[0] > 10 and np.isinf(found.gap[0]) and found.kl[0] > 1
