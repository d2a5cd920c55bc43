"""Both readings of N:M told apart: each claim against masks made to be what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.check.claims import check_claim, parse_expected
from exporter.errors import InputRefused, UsageError
from exporter.sparsity.conventions import Claim, claimed_shares, keeps, misfit, readings
from exporter.sparsity.count import mask_pattern
from exporter.sparsity.mask import Mask
from exporter.sparsity.nm import GROUPS
from exporter.sparsity.pattern import LinearPattern
from tests.sparsity.slow import prune_nm

RNG = np.random.default_rng(4)


def found(kept: Any, module: str = "a.down_proj") -> LinearPattern:
    return mask_pattern(module, Mask.from_bool(kept))


def nm(n: int, m: int, module: str = "a.down_proj") -> LinearPattern:
    return found(prune_nm(RNG, 24, 64, n, m), module)


def test_both_readings_stand_side_by_side() -> None:
    wrong = misfit(Claim.parse("2:8"), [nm(6, 8, "a"), nm(6, 8, "b")])
    assert wrong is not None
    assert wrong.found == (
        "2:8 kept = 75 % zeros; 2:8 zeros = 6:8 kept = 25 % zeros; "
        "found 6:8 kept in 2 of 2 linears, 25.0 % zeros"
    )
    assert "say 6:8" in wrong.hint and "prune_n" in wrong.hint
    assert wrong.module == "a"


def test_a_claim_of_zeros_that_were_kept() -> None:
    wrong = misfit(Claim.parse("2:8 zeros"), [nm(2, 8)])
    assert wrong is not None
    assert "counts kept weights" in wrong.hint and "say 2:8" in wrong.hint


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(GROUPS), st.data())
def test_every_n_of_every_m_under_both_readings(m: int, data: Any) -> None:
    kept, claimed = data.draw(st.integers(1, m - 1)), data.draw(st.integers(1, m - 1))
    linear = nm(kept, m)
    assert keeps(linear, kept, m)
    as_kept = misfit(Claim.parse(f"{claimed}:{m}"), [linear])
    as_zeros = misfit(Claim.parse(f"{claimed}:{m} zeros"), [linear])
    assert (as_kept is None) == (claimed == kept)
    assert (as_zeros is None) == (claimed == m - kept)
    said_other = as_kept is not None and "holds only if" in as_kept.hint
    assert said_other == (claimed != kept and claimed == m - kept)


@pytest.mark.parametrize("text", ["2:4", "4:8", "8:16", "2:4 kept", "2:4 zeros", "2:4-kept"])
def test_half_is_the_same_under_both_readings_and_in_wider_groups(text: str) -> None:
    assert misfit(Claim.parse(text), [nm(2, 4)]) is None


def test_a_legal_but_sparser_pattern_is_not_the_claimed_one() -> None:
    wrong = misfit(Claim.parse("2:4"), [nm(2, 8)])
    assert wrong is not None
    assert "found 2:8 kept in 1 of 1" in wrong.found


def test_one_group_over_the_bound_is_told_with_its_linear() -> None:
    kept = prune_nm(RNG, 24, 64, 2, 4)
    kept[7, 8:12] = [True, True, True, False]
    wrong = misfit(Claim.parse("2:4"), [nm(2, 4, "good"), found(kept, "bad")])
    assert wrong is not None
    assert wrong.module == "bad"
    assert "1 of 2 linears do not fit" in wrong.found


def test_permuted_columns_are_guessed_at() -> None:
    kept = prune_nm(RNG, 24, 64, 2, 4)[:, RNG.permutation(64)]
    wrong = misfit(Claim.parse("2:4"), [nm(2, 4), found(kept)])
    assert wrong is not None
    assert "permuted" in wrong.hint


def test_dense_linears_beside_do_not_fit() -> None:
    wrong = misfit(Claim.parse("2:4"), [nm(2, 4), found(np.ones((4, 8), bool), "dense.one")])
    assert wrong is not None
    assert wrong.module == "dense.one"


UNSTRUCTURED = found(RNG.random((64, 64)) < 0.3)
ROWS = found(np.repeat(np.arange(8) % 2 == 0, 16).reshape(8, 16))
DENSE = found(np.ones((4, 8), bool))


@pytest.mark.parametrize(
    ("text", "linears", "holds"),
    [
        ("unstructured", [UNSTRUCTURED], True),
        ("unstructured", [UNSTRUCTURED, DENSE], True),
        ("unstructured", [nm(2, 4)], False),
        ("structured", [ROWS], True),
        ("rows", [ROWS], True),
        ("columns", [ROWS], False),
        ("dense", [DENSE], True),
        ("dense", [], True),
        ("dense", [UNSTRUCTURED], False),
        ("mixed:8", [nm(1, 8), nm(3, 8)], True),
        ("mixed n:8", [nm(1, 8), nm(3, 8)], True),
        ("mixed", [nm(1, 8), nm(1, 4)], True),
        ("mixed:8", [nm(1, 16), nm(3, 16)], False),
        ("mixed:8", [UNSTRUCTURED], False),
        ("2:4", [], False),
        ("75%", [nm(2, 8)], True),
        ("75 % zeros", [nm(2, 8)], True),
        ("50%", [nm(2, 8)], False),
    ],
)
def test_other_claims(text: str, linears: list[LinearPattern], holds: bool) -> None:
    wrong = misfit(Claim.parse(text), linears)
    assert (wrong is None) == holds
    if wrong is not None:
        with pytest.raises(InputRefused) as caught:
            check_claim(Claim.parse(text), linears, "recipe")
        assert (caught.value.code, caught.value.file) == ("pattern-mismatch", "recipe")
        assert caught.value.found == wrong.found


def test_a_density_given_as_a_sparsity_is_told() -> None:
    wrong = misfit(Claim.parse("25%"), [nm(2, 8)])
    assert wrong is not None
    assert wrong.found.startswith("25 % zeros = 75 % kept; 25 % kept = 75 % zeros; found 2:8 kept")
    assert "say 75%" in wrong.hint


@pytest.mark.parametrize(
    "text", ["", "2", "2:5", "0:4", "4:4", "5:4", "2:4 pruned", "mixed:6", "170%", "-5%", "2:4:8"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError):
        Claim.parse(text)
    with pytest.raises(UsageError) as caught:
        parse_expected(text)
    assert caught.value.code == "usage"


@pytest.mark.parametrize(
    ("n", "m", "kept", "zeros"), [(2, 4, "50", "50"), (1, 4, "75", "25"), (3, 16, "81.25", "18.75")]
)
def test_the_shares_of_both_readings(n: int, m: int, kept: str, zeros: str) -> None:
    text = readings(n, m)
    assert f"{n}:{m} kept = {kept} % zeros" in text
    assert f"{m - n}:{m} kept = {zeros} % zeros" in text


def test_shares_by_module() -> None:
    density = {"a": 0.3, "b": 0.5, "c": 0.2}
    assert claimed_shares([("a", 0.7), ("b", 0.5), ("c", 0.8)], density) is None
    swapped = claimed_shares([("b", 0.5), ("a", 0.3), ("c", 0.2)], density)
    assert swapped is not None and swapped.module == "a"
    assert "record 1 - x" in swapped.hint and "2 modules" in swapped.found
    wrong = claimed_shares([("a", 0.7), ("c", 0.3)], density)
    assert wrong is not None and wrong.module == "c" and "record" not in wrong.hint
    lost = claimed_shares([("d", 0.5)], density)
    assert lost is not None and "no mask" in lost.found
