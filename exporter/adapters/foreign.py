"""PEFT's methods that are not read here, and the way out of each.

Names are those of peft/utils/peft_types.py (PEFT 0.21). Whether PEFT converts a method to LoRA
is what its layers' `supports_lora_conversion` says, whether it merges one what `merge` does.
"""

from __future__ import annotations

PROMPTS = frozenset(
    {
        "ADAPTION_PROMPT",
        "CARTRIDGE",
        "CPT",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
    }
)
# The weights that act depend on the input, or act beside the model's own.
ROUTED = frozenset({"LILY", "POLY", "SHADOW", "XLORA"})
CONVERTIBLE = frozenset(
    {
        "C3A",
        "DELORA",
        "FOURIERFT",
        "GRALORA",
        "MISS",
        "PSOFT",
        "RANDLORA",
        "TINYLORA",
        "UNILORA",
        "VBLORA",
        "WAVEFT",
    }
)
MERGEABLE = frozenset(
    {
        "ADAMSS",
        "BEFT",
        "BOFT",
        "DEFT",
        "FROD",
        "GLORA",
        "HIRA",
        "HRA",
        "OFT",
        "OSF",
        "PEANUT",
        "PVERA",
        "ROAD",
        "SUPERTUNING",
        "TRAINABLE_TOKENS",
    }
)

_MERGE = (
    "merge it into the dense base with PEFT (merge_and_unload), then prune and export that; "
    "merged into a pruned base it would fill the zeros"
)


def way_out(kind: str) -> str:
    """What to do with an adapter of `peft_type` `kind`, for an error's hint."""
    if kind in PROMPTS:
        return "It adds tokens, not weights, so no tool can merge it: train a LoRA instead."
    if kind in ROUTED:
        return "It is no change of the weights, so no tool can merge it: train a LoRA instead."
    if kind in CONVERTIBLE:
        return (
            "Convert it to LoRA with peft's save_as_lora, which comes as near as the rank allows, "
            f"or {_MERGE}."
        )
    if kind in MERGEABLE:
        return f"{_MERGE[0].upper()}{_MERGE[1:]}."
    return f"If PEFT knows it, {_MERGE}."
