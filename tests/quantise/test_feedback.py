"""Error feedback against GPTQ written out in float64, and what it must never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exporter.model import QuantKind
from exporter.quantise.feedback import Feedback, feed_back
from exporter.quantise.rounding import Rounded, dequantise
from exporter.quantise.scales import scales_of
from tests.quantise import slow_gptq

KINDS: tuple[QuantKind, ...] = ("int8", "int4", "fp8")


def case(rows: int, width: int, seed: int = 0, density: float = 0.4) -> tuple[Any, Any, Any]:
    """Weight, kept, Gram matrix of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * width, width // 2)) @ rng.standard_normal((width // 2, width))
    x += rng.standard_normal(x.shape)
    x *= np.exp(rng.standard_normal(width))
    kept = rng.random((rows, width)) < density
    weight = (rng.standard_normal((rows, width)) * kept).astype(np.float32) + np.float32(0.0)
    return weight, kept, (x.T @ x).astype(np.float32)


def run(weight: Any, kept: Any, gram: Any, kind: QuantKind, group: int, sweeps: int = 2) -> Any:
    scales = scales_of(weight, kind, group)
    return feed_back(weight, scales, kept, Feedback.of(gram), kind, group, sweeps)


def rounded(weight: Any, kind: QuantKind, group: int) -> Any:
    codes, scales = Rounded(lambda r0, r1: weight[r0:r1], kind, group, "w")(0, len(weight))
    return dequantise(codes, scales, group)


def error(weight: Any, values: Any, gram: Any) -> Any:
    """`e H' e^T` of each row, with the damping that is solved with."""
    e = weight.astype(np.float64) - values
    return np.einsum("ij,ij->i", e @ slow_gptq.damped(gram), e)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "group"), [(40, 0), (150, 64), (200, 0)])
@pytest.mark.parametrize("dense", [False, True])
def test_against_gptq_by_the_inverse(kind: QuantKind, width: int, group: int, dense: bool) -> None:
    """The blocks, the missing inverse and float32 change no code."""
    weight, kept, gram = case(6, width, density=1.0 if dense else 0.4)
    codes, scales = run(weight, None if dense else kept, gram, kind, group, sweeps=0)
    want, want_scales = slow_gptq.gptq(weight, kept, gram, kind, group)
    np.testing.assert_array_equal(np.repeat(scales, group or width, axis=1)[:, :width], want_scales)
    np.testing.assert_array_equal(codes.astype(np.float64), want)


@pytest.mark.parametrize("kind", ("int8", "int4"))
@pytest.mark.parametrize("group", [0, 64])
def test_sweeps_against_trying_every_code(kind: QuantKind, group: int) -> None:
    weight, kept, gram = case(3, 150, seed=1)
    start, scales = slow_gptq.gptq(weight, kept, gram, kind, group)
    want = slow_gptq.descend(weight, kept, gram, start, scales, kind, 2)
    assert (want != start).any()
    np.testing.assert_array_equal(run(weight, kept, gram, kind, group)[0], want)


@pytest.mark.parametrize("kind", KINDS)
def test_less_is_lost_than_by_rounding_and_less_with_each_sweep(kind: QuantKind) -> None:
    weight, kept, gram = case(64, 300, seed=2)
    by_sweeps: list[float] = []
    for sweeps in (0, 1, 2, 3):
        codes, scales = run(weight, kept, gram, kind, 128, sweeps)
        by_sweeps.append(float(error(weight, dequantise(codes, scales, 128), gram).sum()))
    assert by_sweeps == sorted(by_sweeps, reverse=True)
    assert by_sweeps[2] < 0.6 * float(error(weight, rounded(weight, kind, 128), gram).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [0, 64])
def test_zeros_stay(kind: QuantKind, group: int) -> None:
    weight, kept, gram = case(9, 130, seed=3, density=0.2)
    kept[4], weight[4] = False, 0.0
    codes, scales = run(weight, kept, gram, kind, group)
    values = dequantise(codes, scales, group)
    assert not codes[~kept].astype(np.float32).any()
    assert not values[~kept].view(np.uint32).any(), "a zero outside the mask is not +0.0"
    assert (scales > 0).all() and np.isfinite(scales).all() and (scales[4] == 1.0).all()


def test_a_dense_weight_needs_no_mask() -> None:
    weight, kept, gram = case(5, 130, density=1.0)
    with_mask, without = (run(weight, k, gram, "int4", 64) for k in (kept, None))
    for a, b in zip(with_mask, without, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_correlations_it_is_rounding() -> None:
    weight, kept, _ = case(5, 100)
    for gram in (np.zeros((100, 100), np.float32), np.eye(100, dtype=np.float32) * 7):
        codes, scales = run(weight, kept, gram, "int8", 0)
        np.testing.assert_array_equal(dequantise(codes, scales, 0), rounded(weight, "int8", 0))


def test_an_input_that_was_never_seen() -> None:
    """Its weights are rounded, and take up no error of others."""
    weight, kept, gram = case(8, 100, seed=4)
    dead = [3, 50, 99]
    gram[dead], gram[:, dead] = 0.0, 0.0
    codes, scales = run(weight, kept, gram, "int4", 0)
    values = dequantise(codes, scales, 0)
    np.testing.assert_array_equal(values[:, dead], rounded(weight, "int4", 0)[:, dead])


def test_rows_do_not_touch_one_another() -> None:
    weight, kept, gram = case(7, 140, seed=5)
    other = weight.copy()
    other[3] *= 2.5
    one, two = (run(w, kept, gram, "int4", 64) for w in (weight, other))
    same = np.arange(7) != 3
    np.testing.assert_array_equal(one[0][same], two[0][same])
    assert (one[0][3] != two[0][3]).any() or (one[1][3] != two[1][3]).any()


def test_a_gram_matrix_that_rounding_left_indefinite() -> None:
    """More damping, not an error: the sum of squares of one direction came out below 0."""
    weight, kept, _ = case(8, 60, seed=6)
    direction = np.ones((60, 1)) / np.sqrt(60)
    gram = (np.eye(60) - 1.2 * direction @ direction.T).astype(np.float32)
    assert np.linalg.eigvalsh(gram)[0] < -0.1
    codes, scales = run(weight, kept, gram, "int8", 0)
    values = dequantise(codes, scales, 0)
    assert not values[~kept].any() and np.abs(values - weight).max() < 2 * scales.max()
