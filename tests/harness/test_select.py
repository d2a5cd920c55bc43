"""Selection against a slow reference: exact counts, exact groups, nested masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter.errors import UsageError
from harness.prune.select import keep
from harness.prune.sparsity import NM, Unstructured, parse_sparsity

# Few different values: ties are the hard part.
SCORES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
    elements=st.integers(0, 6).map(float),
)


def drop_slowly(scores, count):
    """False at the `count` lowest of a list, by (score, index)."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    return [i not in order[:count] for i in range(len(scores))]


@settings(deadline=None, max_examples=60)
@given(SCORES, st.sampled_from([0.1, 0.29, 0.5, 0.7, 0.95]))
def test_rows_lose_exactly_their_lowest(scores, share):
    expected = [drop_slowly(list(row), int(round(len(row) * share, 6))) for row in scores]
    np.testing.assert_array_equal(keep(scores, Unstructured(share)), expected)


@settings(deadline=None, max_examples=40)
@given(SCORES, st.sampled_from([0.3, 0.5, 0.9]))
def test_a_tensor_loses_exactly_its_lowest(scores, share):
    count = int(round(scores.size * share, 6))
    expected = np.reshape(drop_slowly(list(scores.ravel()), count), scores.shape)
    np.testing.assert_array_equal(keep(scores, Unstructured(share, "tensor")), expected)


@settings(deadline=None, max_examples=60)
@given(SCORES, st.sampled_from([(1, 4), (2, 4), (3, 4), (2, 8), (5, 8), (4, 16)]))
def test_each_group_keeps_n_of_m_and_a_tail_its_share(scores, pattern):
    n, m = pattern
    kept = keep(scores, NM(n, m))
    for row, got in zip(scores, kept, strict=True):
        for j in range(0, len(row), m):
            group = list(row[j : j + m])
            quota = n if len(group) == m else -(-n * len(group) // m)
            assert got[j : j + m].tolist() == drop_slowly(group, len(group) - quota)


@settings(deadline=None, max_examples=40)
@given(SCORES)
def test_masks_nest_as_sparsity_grows(scores):
    masks = [keep(scores, Unstructured(share)) for share in (0.2, 0.5, 0.7, 0.9)]
    for loose, tight in zip(masks, masks[1:], strict=False):
        assert not (tight & ~loose).any()
    assert not (keep(scores, NM(1, 8)) & ~keep(scores, NM(2, 8))).any()


def test_pruning_twice_changes_nothing():
    scores = np.abs(np.random.default_rng(0).standard_normal((9, 57))).astype(np.float32)
    kept = keep(scores, Unstructured(0.7))
    np.testing.assert_array_equal(keep(scores * kept, Unstructured(0.7)), kept)


def test_blocks_of_rows_change_nothing(monkeypatch):
    scores = np.random.default_rng(1).random((33, 20), dtype=np.float32)
    whole = keep(scores, NM(2, 4))
    monkeypatch.setattr("harness.prune.select.BLOCK_ELEMENTS", 45)
    np.testing.assert_array_equal(keep(scores, NM(2, 4)), whole)


def test_shares_and_groups_are_read():
    assert parse_sparsity("0.7") == Unstructured(0.7, "row")
    assert parse_sparsity(".5", "tensor") == Unstructured(0.5, "tensor")
    assert parse_sparsity("2:4") == NM(2, 4)
    assert parse_sparsity("14:16") == NM(14, 16)
    assert parse_sparsity("2:5") == NM(2, 5)


@pytest.mark.parametrize("text", ["0", "1.0", "70", "0.0", "4:4", "0:4", "5:4", "-0.5", "nan", ""])
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError, match="--sparsity"):
        parse_sparsity(text)
