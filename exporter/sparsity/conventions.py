"""What "2:8" claims: N kept of M, or N zeros of M; a claim held against what was found.

Here N counts kept weights. Wanda's and SparseGPT's code counts zeros (`prune_n` of `prune_m`,
wanda lib/prune.py), so a model that one calls 2:8 is 6:8 here. Both readings agree on 2:4, 4:8.
Shares swap the same way: 70 % sparsity is 30 % density.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from exporter.sparsity.nm import GROUPS, capacity
from exporter.sparsity.pattern import NM_REACHED, LinearPattern, ModelPattern, model_pattern

SHARE_TOLERANCE = 0.005
"""How far the share of zeros may be from a claimed one: layers and rows round on their own."""

_NM = re.compile(r"(\d{1,2}):(\d{1,2})(?:[ -](kept|zeros))?")
_MIXED = re.compile(r"mixed(?: n:m|(?::| n:)(\d{1,2}))?")
_SHARE = re.compile(r"(\d{1,2}(?:\.\d+)?) ?%(?: zeros)?")
_KINDS = ("dense", "unstructured", "structured", "rows", "columns")
FORMS = 'N:M (N kept), "N:M kept", "N:M zeros", mixed:M, 70%, ' + ", ".join(_KINDS)

Reading = Literal["kept", "zeros"]


@dataclass(frozen=True)
class Claim:
    """How somebody says that a model is sparse; `n` counts what `counts` names."""

    text: str
    kind: str  # "n:m", "mixed n:m", "share", or one of _KINDS
    n: int = 0
    m: int = 0  # 0 where "mixed n:m" leaves M open
    counts: Reading | None = None  # None: N:M without a word, read as kept
    zeros: float = 0.0  # of kind "share"

    @classmethod
    def parse(cls, text: str) -> Claim:
        """Read one of `FORMS`.

        Raises:
            ValueError: another form, or N and M out of range.
        """
        said = " ".join(text.lower().split())
        if said in _KINDS:
            return cls(said, said)
        if match := _NM.fullmatch(said):
            n, m, counts = int(match[1]), _group(match[2]), match[3]
            if not 0 < n < m:
                raise ValueError(f"{said!r}: N must be 1 to {m - 1}")
            return cls(said, "n:m", n, m, counts if counts in ("kept", "zeros") else None)
        if match := _MIXED.fullmatch(said):
            return cls(said, "mixed n:m", m=_group(match[1]) if match[1] else 0)
        if match := _SHARE.fullmatch(said):
            return cls(said, "share", zeros=float(match[1]) / 100)
        raise ValueError(f"{text!r} is no pattern; patterns are {FORMS}")

    @property
    def kept(self) -> int:
        """N of an N:M claim as kept weights."""
        return self.m - self.n if self.counts == "zeros" else self.n


def _group(text: str) -> int:
    if int(text) not in GROUPS:
        raise ValueError(f"groups of {text}: M must be one of {GROUPS}")
    return int(text)


@dataclass(frozen=True)
class Misfit:
    """A claim that does not hold: what was found, and what the claim may have meant."""

    found: str
    module: str | None  # the first linear that does not fit
    hint: str


def keeps(linear: LinearPattern, n: int, m: int) -> bool:
    """Whether the linear is N:M with N kept: no group over it, and not far below it.

    Without the second half a 2:8 matrix would pass for 6:8 as well.
    """
    room = (linear.out_features - linear.zero_rows) * capacity(linear.in_features, n, m)
    return linear.group_max[m] <= n and linear.kept >= NM_REACHED * room


def misfit(claim: Claim, linears: Sequence[LinearPattern]) -> Misfit | None:
    """None where the claim holds for all `linears` together."""
    whole = model_pattern(linears)
    if claim.kind == "n:m":
        return _nm_misfit(claim, linears, whole)
    if claim.kind == "share":
        return _share_misfit(claim, whole)
    if claim.kind == "mixed n:m":
        fits = whole.kind in ("n:m", "mixed n:m") and claim.m in (0, whole.m)
    else:
        fits = claim.kind == whole.kind or (set(whole.labels) == {claim.kind})
    if fits:
        return None
    return Misfit(f"claimed {claim.text}; found {_found(whole)}", None, _UNCLEAR)


_UNCLEAR = "Check that this is the model meant; `sparse-export inspect` lists each linear."


def _nm_misfit(
    claim: Claim, linears: Sequence[LinearPattern], whole: ModelPattern
) -> Misfit | None:
    odd = [x for x in linears if not keeps(x, claim.kept, claim.m)]
    if linears and not odd:
        return None
    found = f"{readings(claim.n, claim.m)}; found {_found(whole)}"
    other = claim.m - claim.kept
    first = odd[0].module if odd else None
    if linears and all(keeps(x, other, claim.m) for x in linears):
        word = "kept weights" if claim.counts == "zeros" else "zeros"
        return Misfit(
            found,
            first,
            f"The claim holds only if {claim.n}:{claim.m} counts {word}: say {other}:{claim.m}, "
            "which counts kept weights (prune_n of Wanda and SparseGPT counts zeros).",
        )
    if odd:
        found += f"; {len(odd)} of {len(linears)} linears do not fit"
    return Misfit(found, first, _PERMUTED if _is_permuted(claim, odd) else _UNCLEAR)


_PERMUTED = (
    "The share of zeros is the claimed one, but groups are over the bound: the mask has no groups, "
    "or columns were permuted after pruning (S2FT does): undo that with the order it was made with."
)


def _is_permuted(claim: Claim, odd: Sequence[LinearPattern]) -> bool:
    """Whether the linears that do not fit keep as many weights as the pattern, elsewhere."""
    rooms = [x.out_features * capacity(x.in_features, claim.kept, claim.m) for x in odd]
    return bool(odd) and all(NM_REACHED * r <= x.kept <= r for x, r in zip(odd, rooms, strict=True))


def readings(n: int, m: int) -> str:
    """Both readings of N:M side by side, with their shares of zeros.

    >>> readings(2, 8)
    '2:8 kept = 75 % zeros; 2:8 zeros = 6:8 kept = 25 % zeros'
    """
    kept, zeros = 100 * (m - n) / m, 100 * n / m
    return f"{n}:{m} kept = {kept:g} % zeros; {n}:{m} zeros = {m - n}:{m} kept = {zeros:g} % zeros"


def _share_misfit(claim: Claim, whole: ModelPattern) -> Misfit | None:
    zeros = 1.0 - whole.density
    if abs(zeros - claim.zeros) <= SHARE_TOLERANCE:
        return None
    share = 100 * claim.zeros
    found = (
        f"{share:g} % zeros = {100 - share:g} % kept; {share:g} % kept = {100 - share:g} % zeros; "
        f"found {_found(whole)}"
    )
    if abs(whole.density - claim.zeros) <= SHARE_TOLERANCE:
        return Misfit(found, None, f"The claim holds as a density; say {100 - share:g}%.")
    return Misfit(found, None, _UNCLEAR)


def _found(whole: ModelPattern) -> str:
    """ "6:8 kept in 14 of 14 linears, 25.0 % zeros"."""
    total = sum(whole.labels.values())
    if not total:
        return "no linear"
    parts = [f"{_spelled(label)} in {n} of {total}" for label, n in whole.labels.items()]
    return f"{', '.join(parts)} linears, {100 * (1 - whole.density):.1f} % zeros"


def _spelled(label: str) -> str:
    return f"{label} kept" if label[0].isdecimal() else label


def claimed_shares(
    claimed: Iterable[tuple[str, float]], density: dict[str, float]
) -> Misfit | None:
    """Hold claimed shares of zeros, module by module, against densities found.

    Args:
        claimed: (module, share of zeros); modules without a found density do not fit.
        density: module -> share kept.
    """
    wrong: list[tuple[str, float]] = []
    swapped = True
    for module, zeros in claimed:
        kept = density.get(module)
        if kept is not None and abs(1.0 - kept - zeros) <= SHARE_TOLERANCE:
            swapped = swapped and abs(zeros - 0.5) <= SHARE_TOLERANCE
            continue
        wrong.append((module, zeros))
        swapped = swapped and kept is not None and abs(kept - zeros) <= SHARE_TOLERANCE
    if not wrong:
        return None
    module, zeros = wrong[0]
    kept = density.get(module)
    what = "no mask of it" if kept is None else f"{100 * (1 - kept):.1f} % zeros"
    found = (
        f"{zeros:g} as a share of zeros = {100 * zeros:g} % zeros; as a density = "
        f"{100 * (1 - zeros):g} % zeros; found {what} ({len(wrong)} modules do not fit)"
    )
    return Misfit(found, module, "The shares are densities: record 1 - x." if swapped else _UNCLEAR)
