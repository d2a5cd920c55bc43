"""Options of a PEFT config: which are harmless, which change the result, which are unknown.

An option that would change the result and is not carried out must stop the read: a skipped
option is a wrong merge without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exporter.errors import InputRefused


@dataclass(frozen=True)
class OptionTable:
    """What one family does with each key of adapter_config.json.

    `refused` maps a key to the reason and the way out; the key may stand in the file with a
    value that switches it off (null, false, empty).
    """

    read: frozenset[str]  # carried out by the family
    harmless: frozenset[str]  # change training or bookkeeping only
    refused: Mapping[str, str] = field(default_factory=dict)


# Keys of every PEFT config (peft/config.py, PeftConfigMixin and PeftConfig, 0.21).
COMMON_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    }
)


def check_options(raw: Mapping[str, Any], table: OptionTable, file: str) -> None:
    """Every key is read, harmless, or switched off.

    Raises:
        InputRefused: `adapter-option`, naming the key.
    """
    for key, value in raw.items():
        if key in table.read or key in table.harmless or _is_off(value):
            continue
        reason = table.refused.get(key)
        if reason is not None:
            raise InputRefused(
                "adapter-option",
                f"{key} = {_short(value)}: {reason}",
                expected=f"{key} switched off",
                file=file,
            )
        raise InputRefused(
            "adapter-option",
            f"unknown option {key} = {_short(value)}, perhaps of a newer PEFT",
            expected="options of PEFT 0.21, or null, false or empty",
            file=file,
            hint="If the option does not change the result, remove it from the file.",
        )


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
