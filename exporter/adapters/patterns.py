"""How PEFT matches module names: rank and alpha patterns, target and exclude lists.

Meaning as in PEFT 0.21: `get_pattern_key` and `match_target_against_key` (peft/utils/other.py),
`check_target_module_exists` (peft/tuners/tuners_utils.py). Written again because importing peft
pulls in torch, and because patterns here come from an untrusted file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from exporter.errors import InputRefused

# Python's `re` backtracks: a repeated group, or many repeats in a row, takes time without end on
# a name of fifty letters. Real patterns have a few `.*` and repeat no group.
_MAX_CHARS = 8192
_MAX_REPEATS = 6


def pattern_key(patterns: Iterable[str], module: str, file: str) -> str | None:
    """The first of `patterns` that ends `module`, as PEFT chooses it; None where none does.

    Raises:
        InputRefused: `adapter-invalid` for an expression that does not compile or is unsafe.
    """
    for key in patterns:
        if _safe(rf"(.*\.)?({key})$", key, file).match(module):
            return key
    return None


def names_module(targets: str | Sequence[str], module: str, file: str) -> bool:
    """Whether a list of name ends, or one whole-name expression, names `module`."""
    if isinstance(targets, str):
        return _safe(targets, targets, file).fullmatch(module) is not None
    return module in targets or any(module.endswith(f".{t}") for t in targets)


def layer_index(module: str, patterns: str | Sequence[str] | None, file: str) -> int | None:
    """The layer number in a module name, as `layers_to_transform` counts."""
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", module)
        return int(found["idx"]) if found else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        whole = rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."
        found = _safe(whole, pattern, file).match(module)
        if found:
            return int(found["idx"])
    return None


def saves_module(names: Sequence[str], module: str) -> bool:
    """Whether `modules_to_save` names `module` (PEFT compares name ends, letter by letter)."""
    return any(module.endswith(n) for n in names)


def inside_saved(names: Sequence[str], module: str) -> bool:
    """Whether `module` is, or lies inside, a saved module, so that PEFT puts no LoRA there."""
    return any(re.match(rf"(^|.*\.){re.escape(n)}($|\..*)", module) for n in names)


@lru_cache(maxsize=4096)  # a rank table of 500 modules asks 250,000 times
def _safe(whole: str, given: str, file: str) -> re.Pattern[str]:
    reason = _danger(given)
    if reason is None:
        try:
            return re.compile(whole)
        except (re.error, OverflowError, RecursionError) as error:
            reason = f"does not compile: {error}"
    raise InputRefused(
        "adapter-invalid",
        f"the pattern {given[:80]!r} {reason}",
        expected="a regular expression of module names",
        file=file,
        hint="Write the module names out, or simplify the expression.",
    )


def _danger(pattern: str) -> str | None:
    """Why a pattern might not end; None for a harmless one."""
    if len(pattern) > _MAX_CHARS:
        return f"has {len(pattern)} characters (at most {_MAX_CHARS})"
    if re.search(r"\(\?P=|\(\?\(|\\[1-9]", pattern):
        return "has a back-reference"
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)  # escapes and sets: one atom
    bare = bare.replace("(?", "(")
    if re.search(r"\)[*+{]", bare):
        return "repeats a group"
    if len(re.findall(r"[*+?]\??|\{\d*,?\d*\}\??", bare)) > _MAX_REPEATS:
        return f"has more than {_MAX_REPEATS} repeats"
    return None
