"""The three masks of a merge: the model's zeros, a masks file, and what an adapter trained under.

They must be one mask, bit for bit (with a masks file, zeros on kept positions are lawful). Where
they are not, the error counts, names the first module, and says which of them is the odd one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from exporter.adapters.base import Adapter
from exporter.arch.model_spec import Linear
from exporter.check.masks import ZerosMasks
from exporter.errors import InputRefused
from exporter.model import CheckedModel
from exporter.sparsity.agree import Difference, difference, masks_sha256
from exporter.sparsity.mask import Mask
from exporter.store.masks import MasksFile

_ZEROS = "zeros"  # `MaskSource.origin` of masks read from the weights

Masks = Callable[[str], Mask]


def check_trained_under(checked: CheckedModel, adapter: Adapter) -> None:
    """The masks that an adapter was trained under, or their digests, are this model's.

    Holds two masks at a time; reads nothing for an adapter that records neither.

    Raises:
        InputRefused: `mask-mismatch`; `adapter-module` for a mask of what is no linear.
    """
    linears = {li.module: li for li in checked.spec.linears()}
    _check_known(adapter, linears)

    def own(module: str) -> Mask:
        return checked.masks.mask(linears[module])

    def zeros(module: str) -> Mask:
        return ZerosMasks(checked.checkpoint).mask(linears[module])

    file = None if checked.masks.origin == _ZEROS else checked.masks.origin
    if adapter.masks:
        odd = _compare(adapter.masks, own)
        if odd is not None:
            with_zeros = None if file is None else _compare(adapter.masks, zeros)
            raise _differ(adapter, odd, file, with_zeros)
    if adapter.mask_sha256 is not None:
        _check_digests(adapter, adapter.mask_sha256, linears, own, zeros if file else None, file)


def name_the_odd_one(
    error: InputRefused, by_zeros: CheckedModel, file: MasksFile, adapters: Iterable[Adapter]
) -> InputRefused:
    """`error`, that a masks file prunes what the model has, with what adapters know of it.

    Args:
        error: `mask-mismatch` of `check_model`.
        by_zeros: the model, checked without the file.
        file: the masks file.
        adapters: read for this base; one that has masks of its own tells.
    """
    linears = {li.module: li for li in by_zeros.spec.linears()}
    for adapter in adapters:
        if not adapter.masks or adapter.masks.keys() - linears.keys():
            continue
        name = file.stamp.name
        if _compare(adapter.masks, lambda m: by_zeros.masks.mask(linears[m])) is None:
            told = f"adapter {adapter.name} masks as the model's zeros do, so {name} is the odd one"
        elif _compare(adapter.masks, file.mask) is None:
            told = f"adapter {adapter.name} masks as {name} does, so the model is the odd one"
        else:
            told = f"the mask of adapter {adapter.name} is neither: all three differ"
        return InputRefused(
            error.code,
            f"{error.found}; {told}",
            expected=error.expected,
            file=error.file,
            tensor=error.tensor,
            hint=error.hint,
        )
    return error


def _check_known(adapter: Adapter, linears: Mapping[str, Linear]) -> None:
    named = adapter.mask_sha256 if isinstance(adapter.mask_sha256, Mapping) else {}
    strange = sorted({*(adapter.masks or {}), *named} - linears.keys())
    if strange:
        raise InputRefused(
            "adapter-module",
            f"adapter {adapter.name} has a mask of it",
            expected="masks of prunable linears of the model",
            tensor=strange[0],
        )


@dataclass(frozen=True)
class _Odd:
    """Differences of all masks of an adapter from another source's."""

    modules: int
    of: int
    module: str  # the first
    first: Difference
    kept: int  # of the first module, by the other source
    wider: bool  # somewhere the adapter prunes what the other keeps


def _compare(trained: Mapping[str, Mask], other: Masks) -> _Odd | None:
    odd: _Odd | None = None
    for module in trained:
        theirs = other(module)
        differs = difference(theirs, trained[module])
        if differs is None:
            continue
        if odd is None:
            odd = _Odd(0, len(trained), module, differs, theirs.kept, wider=False)
        odd = replace(odd, modules=odd.modules + 1, wider=odd.wider or differs.only_left > 0)
    return odd


def _differ(adapter: Adapter, odd: _Odd, file: str | None, with_zeros: _Odd | None) -> InputRefused:
    source = f"masks file {file}" if file else "model's zeros"
    text = (
        f"adapter {adapter.name} was trained under another mask than the {source}: "
        f"{odd.modules} of {odd.of} modules differ; of {odd.kept} weights kept here it prunes "
        f"{odd.first.only_left}, and it keeps {odd.first.only_right} that are pruned here, the "
        f"first at {list(odd.first.first)}"
    )
    if file is None:
        hint = (
            "Give the sparse base that the adapter was trained on."
            if odd.wider
            else "The base has zeros on kept positions: give its mask file with --masks."
        )
    elif with_zeros is None:
        text += f"; the model's zeros are the adapter's mask, so {file} is the odd one"
        hint = "Leave --masks out, or give the file that belongs to this base."
    else:
        text += _against_zeros(with_zeros, file)
        hint = "Give the base and the masks file that the adapter was trained on."
    return InputRefused(
        "mask-mismatch", text, expected="one mask, bit for bit", tensor=odd.module, hint=hint
    )


def _against_zeros(odd: _Odd, file: str) -> str:
    if odd.wider:  # the model has weights where the adapter's mask prunes, as the file allows
        return f"; the model's zeros fit {file}, so the adapter's mask is the odd one"
    return (
        f"; the model's zeros contain what either prunes, so they fit both {file} and the "
        "adapter, which cannot both be right"
    )


def _check_digests(
    adapter: Adapter,
    recorded: str | Mapping[str, str],
    linears: Iterable[str],
    own: Masks,
    zeros: Masks | None,
    file: str | None,
) -> None:
    """Only digests are known, so no weight can be counted; modules can, where each has its own."""
    modules = list(linears) if isinstance(recorded, str) else list(recorded)
    odd = _odd_digests(recorded, modules, own)
    if not odd:
        return
    source = f"the masks file {file}" if file else "the model's zeros"
    text = f"adapter {adapter.name} records the digest of another mask than {source}"
    if not isinstance(recorded, str):
        text += f": {len(odd)} of {len(modules)} modules differ"
    if zeros is not None:
        same = not _odd_digests(recorded, modules, zeros)
        text += (
            f"; it is that of the model's zeros, so {file} is the odd one"
            if same
            else "; it is not that of the model's zeros either"
        )
    raise InputRefused(
        "mask-mismatch",
        text,
        expected="the mask that the adapter was trained under, bit for bit",
        tensor=None if isinstance(recorded, str) else odd[0],
        hint="Give the sparse base that the adapter was trained on, and its masks file if it has "
        "one.",
    )


def _odd_digests(recorded: str | Mapping[str, str], modules: list[str], masks: Masks) -> list[str]:
    found = ((m, masks(m).sha256()) for m in modules)
    if isinstance(recorded, str):
        return [] if masks_sha256(found) == recorded else modules
    return [m for m, digest in found if digest != recorded[m]]
