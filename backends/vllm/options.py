"""The options that the vLLM targets share."""

from __future__ import annotations

from typing import Literal, cast

from backends.vllm.choose import FloatValues
from exporter.contract import QuantiseRequest
from exporter.errors import UsageError
from exporter.model import QuantKind

Values = Literal["bf16", "fp16", "fp32", "int8", "int4", "fp8"]
Method = Literal["round", "gptq"]
_TILE = 64  # columns: a group of scales ends where a tile does
_GROUPS = {"int8": 0, "int4": 128, "fp8": 0}  # where the user names none


def check_options(
    target: str, values: Values | None, group: int | None, method: Method, shard_mb: int
) -> None:
    """Refuse what cannot be meant.

    Raises:
        UsageError: `target-option`.
    """
    quantised = values in _GROUPS
    if group is not None and not quantised:
        raise _option(target, f"group={group}", "values=int8, int4 or fp8 beside it")
    if group is not None and (group < 0 or group % _TILE):
        raise _option(target, f"group={group}", f"a multiple of {_TILE}, or 0 for one scale a row")
    if method != "round" and not quantised:
        raise _option(target, f"quantise={method}", "values=int8, int4 or fp8 beside it")
    if shard_mb < 1:
        raise _option(target, f"shard_mb={shard_mb}", "1 or more")


def quantisation(
    values: Values | None, group: int | None, method: Method
) -> QuantiseRequest | None:
    """What the stage before lowering is asked for; None for float values.

    Dense linears are quantised too: `values` is said of all linears.
    """
    if values not in _GROUPS:
        return None
    kind = cast(QuantKind, values)
    return QuantiseRequest(kind, _GROUPS[kind] if group is None else group, method, dense=True)


def float_values(values: Values | None) -> FloatValues | None:
    """The float type asked for, or None."""
    return None if values is None or values in _GROUPS else cast(FloatValues, values)


def _option(target: str, found: str, expected: str) -> UsageError:
    return UsageError("target-option", f"{target}: {found}", expected=expected)
