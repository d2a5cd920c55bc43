"""Writing a LoRA folder: plain, rsLoRA, DoRA, and SparsePEFT.

Format: docs/formats/lora.md; the peft library loads all but SparsePEFT, whose mask it does not
know (it would load the factors as a dense LoRA).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from exporter.adapters.tuner_files import write_tuner
from exporter.errors import InputRefused
from exporter.store.dtypes import F32

ValueT = TypeVar("ValueT", int, float)


def write_lora(
    folder: Path,
    factors: Mapping[str, tuple[F32, F32]],
    *,
    alpha: float | Mapping[str, float],
    rslora: bool = False,
    magnitudes: Mapping[str, F32] | None = None,
    sparse: bool = False,
    base_name: str | None = None,
) -> None:
    """Write a LoRA; equal inputs give equal bytes.

    Args:
        folder: new or empty.
        factors: module (a linear or the head) -> (A `[r, in]`, B `[out, r]`), float32; ranks may
            differ.
        alpha: of all modules, or of each. The scale is `alpha / r`, or `alpha / sqrt(r)` with
            `rslora`, by the module's own rank.
        rslora: see above.
        magnitudes: module -> m `[out]` of each module makes it DoRA.
        sparse: trained under the base's zeros (SparsePEFT).
        base_name: what the config says of the base.

    Raises:
        InputRefused: `adapter-shape`, `adapter-invalid` for modules without alpha or magnitude,
            `output-failed`.
    """
    alphas = dict.fromkeys(factors, alpha) if isinstance(alpha, int | float) else alpha
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for module, (a, b) in factors.items():
        _check_pair(module, a, b)
        parts[module] = {"lora_A.weight": a, "lora_B.weight": b}
    for given in (alphas, *([magnitudes] if magnitudes is not None else [])):
        if given.keys() != factors.keys():
            odd = sorted(given.keys() ^ factors.keys())
            raise InputRefused(
                "adapter-invalid",
                f"an alpha or magnitude for {odd[0]!r} without factors, or factors without it",
                expected="one for each module",
                tensor=odd[0],
            )
    for module, magnitude in (magnitudes or {}).items():
        if magnitude.shape != (len(factors[module][1]),):
            raise InputRefused(
                "adapter-shape",
                f"magnitude {list(magnitude.shape)}",
                expected=f"[{len(factors[module][1])}], one for each row",
                tensor=module,
            )
        parts[module]["lora_magnitude_vector"] = magnitude
    rank, ranks = _common({m: int(a.shape[0]) for m, (a, _) in factors.items()})
    shared, others = _common(dict(alphas))
    options: dict[str, Any] = {
        "r": rank,
        "lora_alpha": shared,
        "rank_pattern": ranks,
        "alpha_pattern": others,
        "bias": "none",
        "use_rslora": rslora,
        "use_dora": magnitudes is not None,
    }
    if sparse:
        options["sparse_adapter"] = True
    write_tuner(folder, "LORA", parts, options, base_name=base_name)


def _common(values: Mapping[str, ValueT]) -> tuple[ValueT, dict[str, ValueT]]:
    """The most frequent value, and the modules with another one, by their whole names.

    As patterns, whole names match these modules alone: a dot stands for any one character, and
    no two modules of a decoder differ in nothing but a dot.
    """
    if not values:
        raise InputRefused("adapter-empty", "no factors", expected="at least one module")
    usual = Counter(sorted(values.values())).most_common(1)[0][0]
    return usual, {m: v for m, v in sorted(values.items()) if v != usual}


def _check_pair(module: str, a: F32, b: F32) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise InputRefused(
            "adapter-shape",
            f"A {list(a.shape)}, B {list(b.shape)}",
            expected="A [r, in], B [out, r]",
            tensor=module,
        )
