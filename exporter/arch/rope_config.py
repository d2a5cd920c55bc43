"""Rotary parameters of a config, in both of its forms, checked and made complete.

Old form: `rope_theta` and `rope_scaling` (`type` or `rope_type`). New form (transformers 5):
`rope_parameters`. Precedence follows `RotaryEmbeddingConfigMixin` of transformers 5.19.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.arch.fields import FILE, Fields, invalid
from exporter.errors import InputRefused

KINDS = ("default", "linear", "llama3", "yarn")
_TINY, _HUGE = 1e-6, 1e12


def parse_rope(fields: Fields, max_positions: int) -> tuple[float, str, dict[str, float]]:
    """`(theta, kind, numbers)`; `numbers` holds all that `kind` needs, defaults filled in.

    Raises:
        InputRefused: `arch-unsupported` for a kind outside `KINDS` and for partial rotation;
            `config-invalid` for missing or senseless numbers.
    """
    name = "rope_scaling" if fields.raw("rope_scaling") else "rope_parameters"
    given: Any = fields.raw(name) or {}
    if not isinstance(given, Mapping):
        raise invalid(name, given, "an object or null")
    theta_default = fields.raw("rope_theta")
    rope = Fields(given, {"rope_theta": theta_default}, prefix=f"{name}.")
    _refuse_partial(fields, rope)
    kind = rope.raw("rope_type") or rope.raw("type") or "default"
    if kind not in KINDS:
        raise InputRefused(
            "arch-unsupported",
            f"the rotary embedding is of kind {kind!r:.60}",
            expected=f"one of {', '.join(KINDS)}",
            file=FILE,
            hint="Kinds that depend on the length at run time cannot be put into a fixed graph.",
        )
    theta = rope.number("rope_theta", 1.0 + 1e-9, _HUGE)
    return theta, kind, _numbers(kind, fields, rope, max_positions)


def _refuse_partial(fields: Fields, rope: Fields) -> None:
    nested = [key for key, value in rope.values.items() if isinstance(value, Mapping)]
    if nested:
        found = f"{rope.prefix}{nested[0]} is an object: rotary parameters by layer type"
        raise InputRefused("arch-unsupported", found, expected="one set for all", file=FILE)
    for place in (fields, rope):
        if place.raw("partial_rotary_factor") not in (None, 1, 1.0):
            found = f"partial_rotary_factor is {place.raw('partial_rotary_factor')!r:.60}"
            raise InputRefused("arch-unsupported", found, expected="1.0", file=FILE)


def _numbers(kind: str, fields: Fields, rope: Fields, max_positions: int) -> dict[str, float]:
    if kind == "default":
        return {}
    if kind == "linear":
        return {"factor": rope.number("factor", _TINY, _HUGE)}
    # transformers lets a field at the top level of the config win (Phi-3 keeps it there).
    place = fields if fields.raw("original_max_position_embeddings") is not None else rope
    original = Fields(place.values, {"original_max_position_embeddings": max_positions})
    numbers = {"original": original.number("original_max_position_embeddings", 1, 1 << 31)}
    return numbers | (_llama3(rope) if kind == "llama3" else _yarn(rope, numbers, max_positions))


def _llama3(rope: Fields) -> dict[str, float]:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    numbers = {name: rope.number(name, _TINY, _HUGE) for name in names}
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise invalid(
            f"{rope.prefix}high_freq_factor",
            numbers["high_freq_factor"],
            f"more than low_freq_factor ({numbers['low_freq_factor']:g})",
        )
    return numbers


def _yarn(rope: Fields, given: Mapping[str, float], max_positions: int) -> dict[str, float]:
    numbers: dict[str, float] = {"factor": max_positions / given["original"]}
    if "factor" not in rope.values:
        raise invalid(f"{rope.prefix}factor", None, "a number (or null)")
    for name in ("factor", "attention_factor", "mscale", "mscale_all_dim"):
        if rope.raw(name) is not None:
            numbers[name] = rope.number(name, 0.0 if "mscale" in name else _TINY, _HUGE)
    # `or`: transformers takes 0 and null as "not given" here.
    for name, default in (("beta_fast", 32), ("beta_slow", 1)):
        numbers[name] = rope.number(name, _TINY, _HUGE) if rope.raw(name) else default
    truncate = True if rope.raw("truncate") is None else rope.flag("truncate")
    return {**numbers, "truncate": float(truncate)}
