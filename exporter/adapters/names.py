"""Names of tensors in a PEFT file: `base_model.model.<module>.<part>` and what may go wrong.

Format: peft/utils/save_and_load.py, `get_peft_model_state_dict` (PEFT 0.21).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from exporter.errors import InputRefused

PREFIX = "base_model.model."

# Prefixes that wrappers leave in names, and where each comes from. PEFT itself would skip such
# a tensor without a word (peft#2084, peft#2118).
_FOREIGN: dict[str, str] = {
    PREFIX: "a PEFT model that was wrapped a second time",
    "base_model.": "a PEFT model that was wrapped a second time",
    "module.": "DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "model.language_model.": "a multimodal model around this one",
    "language_model.": "a multimodal model around this one",
}
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class PeftName:
    """One parsed name. `part` is "lora_A.weight", "lora_embedding_A", "weight", "bias", ...

    `base_layer` tells that the tensor belongs to the wrapped layer itself.
    """

    tensor: str
    module: str
    part: str
    adapter: str | None = None  # the adapter's name where it stands inside ("default")
    base_layer: bool = False


def parse_names(
    names: Iterable[str], file: str, marks: tuple[str, ...] = ("lora_",)
) -> list[PeftName]:
    """All names of one file; `marks` are the beginnings of the family's own parts.

    Raises:
        InputRefused: `adapter-tensor-unused` for a missing, doubled or foreign prefix;
            `adapter-invalid` where two adapters are mixed or two names mean one tensor.
    """
    parsed = [_parse(n, file, marks) for n in sorted(names)]
    infixes = {p.adapter for p in parsed if p.part.startswith(marks)}
    if len(infixes) > 1:
        found = sorted("none" if i is None else repr(i) for i in infixes)
        raise InputRefused(
            "adapter-invalid",
            f"tensors of several adapters in one file: names {', '.join(found)}",
            expected="one adapter's tensors, the name in all of them or in none",
            file=file,
        )
    seen: dict[tuple[str, str], str] = {}
    for p in parsed:
        twin = seen.setdefault((p.module, p.part), p.tensor)
        if twin != p.tensor:
            raise InputRefused(
                "adapter-invalid", f"means the same as {twin}", file=file, tensor=p.tensor
            )
    return parsed


def _parse(name: str, file: str, marks: tuple[str, ...]) -> PeftName:
    if not name.startswith(PREFIX):
        raise _foreign(name, _culprit(name), file)
    rest = name.removeprefix(PREFIX)
    culprit = _culprit(rest)
    if culprit:
        raise _foreign(name, culprit, file)
    for mark in marks:
        module, dot, tail = rest.partition(f".{mark}")
        if dot:
            return _own_name(name, module, mark, tail)
    module, _, part = rest.rpartition(".")
    if part not in ("weight", "bias") or not module:
        raise _unknown(name, file)
    base_layer = module.endswith(".base_layer")
    return PeftName(name, module.removesuffix(".base_layer"), part, base_layer=base_layer)


def _own_name(name: str, module: str, mark: str, tail: str) -> PeftName:
    """`tail` is "A.weight", "A.default.weight", "embedding_A", "embedding_A.default", ..."""
    pieces = tail.split(".")
    leaf = pieces.pop() if pieces[-1] in ("weight", "bias") and len(pieces) > 1 else None
    adapter = ".".join(pieces[1:]) or None
    part = f"{mark}{pieces[0]}" + (f".{leaf}" if leaf else "")
    return PeftName(name, module, part, adapter)


def _culprit(name: str) -> str | None:
    for prefix in _FOREIGN:
        if name.startswith(prefix):
            return prefix
    return next((p for p in _ANYWHERE if f".{p}" in name), None)


def _foreign(name: str, culprit: str | None, file: str) -> InputRefused:
    if culprit is None:
        return InputRefused(
            "adapter-tensor-unused",
            f"the name does not begin with {PREFIX!r}",
            expected=f"{PREFIX}<module>.lora_A.weight, as PEFT's save_pretrained writes it",
            file=file,
            tensor=name,
        )
    return InputRefused(
        "adapter-tensor-unused",
        f"a foreign prefix {culprit!r} in the name, from {_FOREIGN[culprit]}",
        expected=f"{PREFIX!r} once, then the base model's own module name",
        file=file,
        tensor=name,
        hint=f"Remove {culprit!r} from all names, or save the unwrapped model's adapter.",
    )


def _unknown(name: str, file: str) -> InputRefused:
    return InputRefused(
        "adapter-tensor-unused",
        "nothing in the format has such a name",
        expected="lora_A.weight, lora_B.weight, weight or bias at the end",
        file=file,
        tensor=name,
    )
