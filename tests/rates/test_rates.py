"""Layer rates: CKA's invariances, the exact optimum, user files, rank correlation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ortho_group

from exporter.errors import InputRefused, UsageError, VerificationFailed
from harness.rates.cka import gram, linear_cka
from harness.rates.correlation import rank_correlation
from harness.rates.lp import default_delta, layer_rates
from harness.rates.model import rmi_rates
from harness.rates.rmi import rmi_importance
from harness.rates.user import read_rates
from tests.tiny import make_tiny


def cka_slowly(a, b):
    """HSIC by its definition, features [n, d]."""
    n = len(a)
    h = np.eye(n) - np.ones((n, n)) / n
    ka, kb = h @ (a @ a.T) @ h, h @ (b @ b.T) @ h
    return np.trace(ka @ kb) / np.sqrt(np.trace(ka @ ka) * np.trace(kb @ kb))


@pytest.mark.parametrize("n", [2, 3, 16, 64])
def test_cka_is_its_definition_and_one_with_itself(n):
    rng = np.random.default_rng(n)
    layers = [(rng.standard_normal((n, 5, 7)) + 3).astype(np.float32) for _ in range(4)]
    got = linear_cka([gram(x) for x in layers])
    flat = [x.reshape(n, -1).astype(float) for x in layers]
    want = [[cka_slowly(a, b) for b in flat] for a in flat]
    np.testing.assert_allclose(got, want, atol=1e-10)
    np.testing.assert_allclose(np.diag(got), 1.0)


def test_cka_does_not_see_scale_shift_or_rotation():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 1, 30)).astype(np.float32)
    other = rng.standard_normal((12, 1, 30)).astype(np.float32)
    turned = (x[:, 0] @ ortho_group.rvs(30, random_state=1) * 4.5 + 2).astype(np.float32)[:, None]
    got = linear_cka([gram(a) for a in (x, turned, other)])
    assert got[0, 1] == pytest.approx(1.0, abs=1e-6)
    assert got[0, 2] == pytest.approx(got[1, 2], abs=1e-6)


def test_chunks_change_nothing(monkeypatch):
    x = np.random.default_rng(0).standard_normal((3, 11, 5)).astype(np.float32)
    whole = gram(x)
    monkeypatch.setattr("harness.rates.cka.CHUNK", 40)
    np.testing.assert_allclose(gram(x), whole)


def test_the_more_redundant_block_is_the_less_important():
    cka = np.array([[1, 0.9, 0.2], [0.9, 1, 0.4], [0.2, 0.4, 1]])
    importance = rmi_importance(cka)
    c = np.array([1.1, 1.3, 0.6])
    np.testing.assert_allclose(importance, np.exp(-c / c.sum()))
    assert importance.argsort().tolist() == [1, 0, 2]
    assert rmi_importance(cka, beta=100).argsort().tolist() == [1, 0, 2]


def rates_slowly(importance, target, delta, sizes):
    """The optimum is at the bounds: raise the least important per weight first."""
    low, high = max(0.0, target - delta), min(1.0, target + delta)
    rates = np.full(len(sizes), low)
    left = target * sum(sizes) - low * sum(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: importance[i] / sizes[i]):
        step = min((high - low) * sizes[i], left)
        rates[i] += step / sizes[i]
        left -= step
    return rates


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=33),
    st.sampled_from([0.05, 0.5, 0.6, 0.7, 0.99]),
    st.sampled_from([0.0, 0.01, 0.03, 0.1]),
)
def test_rates_are_the_optimum_of_the_program(blocks, target, delta):
    importance, sizes = [b[0] for b in blocks], [b[1] for b in blocks]
    got = layer_rates(importance, target, delta, sizes)
    want = rates_slowly(importance, target, delta, sizes)
    assert np.dot(got, sizes) == pytest.approx(target * sum(sizes), rel=1e-9)
    assert got.min() >= max(0, target - delta) - 1e-9
    assert got.max() <= min(1, target + delta) + 1e-9
    # The solver's tolerance is on the importance scaled to 0..1.
    assert np.dot(got - want, importance) <= 1e-6 * sum(sizes)


def test_equal_blocks_split_at_the_median_whatever_beta():
    cka = np.abs(np.random.default_rng(3).standard_normal((31, 31)))
    cka = (cka + cka.T) / 20
    np.fill_diagonal(cka, 1.0)
    order = rmi_importance(cka).argsort()
    for beta in (1.0, 100.0, 300.0):
        rates = layer_rates(rmi_importance(cka, beta), 0.7)
        np.testing.assert_allclose(rates[order[:15]], 0.73)
        np.testing.assert_allclose(rates[order[15]], 0.7)
        np.testing.assert_allclose(rates[order[16:]], 0.67)


@pytest.mark.parametrize("sizes", [None, [3, 3, 3, 3]])
def test_the_last_bit_of_an_importance_decides_nothing(sizes):
    even = np.full(4, np.exp(-0.25))
    for other in (np.nextafter(even, 0.0), np.nextafter(even, 1.0)):
        mixed = np.where([True, False, True, False], even, other)
        np.testing.assert_array_equal(
            layer_rates(mixed, 0.7, sizes=sizes), layer_rates(even, 0.7, sizes=sizes)
        )


def test_deltas_are_those_of_the_code():
    assert [default_delta(s) for s in (0.3, 0.5, 0.55, 0.6, 0.7, 0.9)] == [
        0.01, 0.01, 0.02, 0.02, 0.03, 0.03,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("importance", "target", "delta"),
    [([], 0.5, 0.1), ([1.0], 1.5, 0.1), ([1.0], 0.5, -0.1), ([np.nan], 0.5, 0.1)],
)
def test_programs_without_sense_are_refused(importance, target, delta):
    with pytest.raises(UsageError, match="layer rates"):
        layer_rates(importance, target, delta)


def test_a_model_in_memory_gives_what_its_hidden_states_give():
    model = make_tiny("smollm2", num_hidden_layers=4)
    ids = torch.randint(0, 259, (6, 10), generator=torch.Generator().manual_seed(0))
    rates, importance = rmi_rates(model.model.layers, lambda: model.model(input_ids=ids), 0.7)
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[:4]
    flat = [x.reshape(6, -1).double().numpy() for x in states]
    cka = np.array([[cka_slowly(a, b) for b in flat] for a in flat])
    np.testing.assert_allclose(importance, rmi_importance(cka), rtol=1e-6)
    assert rates.mean() == pytest.approx(0.7)


def test_one_sequence_or_nan_is_told_by_block():
    with pytest.raises(InputRefused, match="data-invalid"):
        linear_cka([np.ones((1, 1))] * 2)
    good = gram(np.random.default_rng(0).random((3, 2, 2), dtype=np.float32))
    with pytest.raises(VerificationFailed, match=r"values-not-finite.*input of block 1"):
        linear_cka([good, good * np.nan])


def test_rates_of_a_file(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"rates": [0.5, 0.25]}))
    assert read_rates(tmp_path / "r.json", 2).tolist() == [0.5, 0.25]
    for bad in ("[0.5]", "[0.5, 1.0]", '["a", 0.1]', "3", "[0.5, -0.1]", "[true, 0.1]"):
        (tmp_path / "r.json").write_text(bad)
        with pytest.raises(InputRefused, match="rates-invalid"):
            read_rates(tmp_path / "r.json", 2)


def test_rank_correlations():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(a, a * 10).spearman == pytest.approx(1.0)
    assert rank_correlation(a, -a).kendall == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(a, np.ones(4)).spearman)
