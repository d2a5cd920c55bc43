"""SparseGPT and ALPS on single matrices: against slow references, and what they must win."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.errors import VerificationFailed
from harness.prune.alps import alps
from harness.prune.magnitude import magnitude
from harness.prune.pruner_zero import pruner_zero
from harness.prune.select import keep
from harness.prune.sparsegpt import inverse_factor, sparsegpt
from harness.prune.sparsity import NM, Unstructured
from harness.prune.wanda import wanda
from tests.prune import slow


def problem(out=20, width=48, seed=0, tokens=400):
    """(weight, X^T X) with correlated inputs of about equal scale."""
    rng = np.random.default_rng(seed)
    mix = np.eye(width) + 0.6 * rng.standard_normal((width, width)) / np.sqrt(width) * 3
    x = rng.standard_normal((tokens, width)) @ mix
    weight = rng.standard_normal((out, width)).astype(np.float32)
    return weight, (x.T @ x).astype(np.float32)


def run(method, weight, gram, sparsity, **options):
    new, kept = method(torch.from_numpy(weight), torch.from_numpy(gram), sparsity, **options)
    assert not new.numpy()[~kept].any()
    return new.numpy(), kept


@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize(
    ("sparsity", "options"),
    [
        (Unstructured(0.5), {"share": 0.5}),
        (Unstructured(0.7), {"share": 0.7}),
        (NM(2, 4), {"nm": (2, 4)}),
        (NM(1, 8), {"nm": (1, 8)}),
        (NM(2, 3), {"nm": (2, 3)}),
        (NM(3, 10), {"nm": (3, 10)}),
    ],
)
def test_sparsegpt_is_the_slow_reference(sparsity, options, block):
    weight, gram = problem()
    got, kept = run(sparsegpt, weight, gram, sparsity, block=block)
    if "nm" in options:  # groups lie in one block
        block = max(options["nm"][1], block - block % options["nm"][1])
    want, wanted = slow.sparsegpt(weight, gram, **options, block=block)
    assert (kept != wanted).sum() <= 2  # scores that float32 cannot tell apart
    if (kept == wanted).all():
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_sparsegpt_reaches_exact_counts_and_leaves_its_input():
    weight, gram = problem(out=9, width=130)
    before = weight.copy()
    _, kept = run(sparsegpt, weight, gram, Unstructured(0.6), block=128)
    assert (~kept[:, :128]).sum() == int(9 * 128 * 0.6)
    assert (~kept[:, 128:]).sum() == int(9 * 2 * 0.6)
    _, kept = run(sparsegpt, weight, gram, NM(2, 4))
    assert (kept[:, :128].reshape(9, -1, 4).sum(axis=2) == 2).all()
    assert (kept[:, 128:].sum(axis=1) == 1).all()  # of the tail its share
    np.testing.assert_array_equal(weight, before)


def test_a_second_pass_revives_zeros_unless_they_are_pinned():
    weight, gram = problem(out=64, width=64)
    new, first = run(sparsegpt, weight, gram, Unstructured(0.3), block=16)
    _, loose = run(sparsegpt, new, gram, Unstructured(0.5), block=16)
    assert (loose & ~first).sum() > 0
    for sparsity in (Unstructured(0.5), NM(2, 4)):
        got, pinned = run(sparsegpt, new, gram, sparsity, within=first, block=16)
        assert not (pinned & ~first).any()
    assert (pinned.reshape(64, -1, 4).sum(axis=2) <= 2).all()
    assert np.count_nonzero(got) == pinned.sum()


def test_updates_beat_masks_and_alps_beats_sparsegpt():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((2000, 24)) @ rng.standard_normal((24, 96)) / np.sqrt(24)
    x = shared + 0.5 * rng.standard_normal((2000, 96))
    weight = rng.standard_normal((64, 96)).astype(np.float32)
    gram = (x.T @ x).astype(np.float32)
    share, norm = Unstructured(0.6), np.sqrt(np.diag(gram))
    error = {
        "magnitude": slow.output_error(weight, weight * magnitude(weight, share), gram),
        "wanda": slow.output_error(weight, weight * wanda(weight, norm, share), gram),
        "sparsegpt": slow.output_error(weight, run(sparsegpt, weight, gram, share)[0], gram),
        "alps": slow.output_error(weight, run(alps, weight, gram, share)[0], gram),
    }
    assert error["alps"] < error["sparsegpt"] < min(error["magnitude"], error["wanda"])


def test_an_input_that_never_comes_loses_its_weights_and_breaks_nothing():
    weight, gram = problem()
    gram[7] = gram[:, 7] = 0
    for method in (sparsegpt, alps):
        new, _ = run(method, weight, gram, Unstructured(0.5))
        assert np.isfinite(new).all()
    assert not run(sparsegpt, weight, gram, Unstructured(0.5))[0][:, 7].any()


def test_a_singular_hessian_is_damped_and_a_hopeless_one_refused():
    few = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    weight = np.ones((4, 32), np.float32)
    new, _ = run(sparsegpt, weight, few.T @ few, NM(2, 4))  # rank 3 of 32
    assert np.isfinite(new).all()
    factor = inverse_factor(torch.from_numpy(few.T @ few), 0.01).double().numpy()
    h = (few.T @ few).astype(float)
    h += 0.01 * np.diag(h).mean() * np.eye(32)
    np.testing.assert_allclose(factor.T @ factor @ h, np.eye(32), atol=1e-4)
    with pytest.raises(VerificationFailed, match="hessian-singular"):
        inverse_factor(-torch.eye(8) - 5.0, 0.01)


@pytest.mark.parametrize("sparsity", [Unstructured(0.5), Unstructured(0.7), NM(2, 4), NM(3, 8)])
def test_alps_is_the_slow_reference(sparsity):
    weight, gram = problem(out=12, width=32, seed=3)

    def choose(b):
        if isinstance(sparsity, NM):
            return np.stack([slow.grouped(np.abs(r), sparsity.n, sparsity.m) for r in b])
        count = int(round(b.size * sparsity.share, 6))
        return slow.drop_lowest(list(np.abs(b).ravel()), count).reshape(b.shape)

    got, kept = run(alps, weight, gram, sparsity)
    want, wanted = slow.alps(weight, gram, choose)
    assert (kept != wanted).sum() <= 4
    assert slow.output_error(weight, got, gram) <= slow.output_error(weight, want, gram) * 1.05


def test_alps_fits_its_support_nearly_as_well_as_least_squares():
    weight, gram = problem(out=12, width=32, seed=5)
    got, kept = run(alps, weight, gram, Unstructured(0.6))
    best = slow.refit(weight, gram + 0.01 * np.diag(gram).mean() * np.eye(32), kept)
    assert slow.output_error(weight, got, gram) < slow.output_error(weight, best, gram) * 1.02


def test_wanda_counts_nests_and_keeps_weights():
    weight, gram = problem(out=17, width=40)
    norm = np.sqrt(np.diag(gram))
    masks = [wanda(weight, norm, Unstructured(s)) for s in (0.2, 0.55, 0.7)]
    for mask, share in zip(masks, (0.2, 0.55, 0.7), strict=True):
        assert ((~mask).sum(axis=1) == int(40 * share + 1e-9)).all()
    assert not (masks[2] & ~masks[1]).any() and not (masks[1] & ~masks[0]).any()
    again = wanda(weight * masks[1], norm, Unstructured(0.7))
    np.testing.assert_array_equal(again, masks[2])


def test_two_of_eight_keeps_two():
    """N is kept here; code that counts zeros would keep six."""
    weight, gram = problem(width=48)
    for kept in (
        wanda(weight, np.sqrt(np.diag(gram)), NM(2, 8)),
        run(sparsegpt, weight, gram, NM(2, 8))[1],
        run(alps, weight, gram, NM(2, 8))[1],
    ):
        assert (kept.reshape(20, -1, 8).sum(axis=2) == 2).all()
        assert 1 - kept.mean() == 0.75


def test_pruner_zero_scales_the_gradient_over_the_matrix():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 20)).astype(np.float32)
    squares = rng.random((6, 20), dtype=np.float32) ** 2
    g = np.sqrt(squares.astype(float))
    scores = np.abs(weight) ** 2 * (g - g.min()) / (g.max() - g.min())
    want = np.stack([slow.drop_lowest(list(row), 10) for row in scores])
    np.testing.assert_array_equal(pruner_zero(weight, squares, Unstructured(0.5)), want)
    flat = pruner_zero(weight, np.ones_like(squares), Unstructured(0.5))
    assert flat.sum() == 60  # no gradient differs: nothing is told apart, counts still hold
    assert keep(np.zeros((2, 4), np.float32), NM(1, 4)).sum() == 2
