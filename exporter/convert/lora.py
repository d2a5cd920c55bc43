"""To a LoRA of PEFT, for engines that serve many of them: `D = scale * B A`, exactly.

S2FT becomes a LoRA of rank k with a one-hot factor (S2FT, arXiv 2412.06289: the frozen U), an
unmasked pooling adapter one of rank min(gout, gin). Format: docs/formats/lora.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exporter.adapters.base import Adapter
from exporter.adapters.names import PREFIX
from exporter.adapters.peft_files import CONFIG, WEIGHTS
from exporter.arch.model_spec import ModelSpec
from exporter.convert.base import Source, impossible
from exporter.model import LowRank
from exporter.store.dtypes import DType
from exporter.store.jsonio import write_json
from exporter.store.writer import SafetensorsWriter

_MASK = (
    "Merge it into its sparse base with --adapter, which is exact: a LoRA has no mask, and would "
    "fill the zeros."
)


class ToLora:
    """Writes a PEFT folder with one rank and one scale for each module."""

    name: ClassVar[str] = "lora"

    def write(self, source: Source, spec: ModelSpec, folder: Path) -> None:
        """Write the factors, one module after the other.

        Raises:
            InputRefused: `conversion-impossible` for masks, whole tensors, biases, linears of
                experts, and deltas that are no product of two factors; `output-failed`.
        """
        _refuse_experts(source, spec)
        factors = _factors(source, spec)
        sizes = {m: _size(read()) for m, read in factors.items()}
        layout = [
            (f"{PREFIX}{m}.lora_{side}.weight", DType.F32, shape)
            for m, (_, a, b) in sizes.items()
            for side, shape in (("A", a), ("B", b))
        ]
        with SafetensorsWriter(folder / WEIGHTS, layout, {"format": "pt"}) as writer:
            for module, read in factors.items():
                branch = read()
                for side, values in (("A", branch.a), ("B", branch.b)):
                    contiguous = np.ascontiguousarray(values, dtype=np.float32)
                    writer.write(f"{PREFIX}{module}.lora_{side}.weight", contiguous)
            writer.close()
        ranks = {m: (a[0], scale) for m, (scale, a, _) in sizes.items()}
        write_json(folder / CONFIG, _config(source.adapter, ranks, spec))


def _size(branch: LowRank) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    return branch.scale, branch.a.shape, branch.b.shape


def _factors(source: Source, spec: ModelSpec) -> dict[str, Callable[[], LowRank]]:
    """A reader of each module's factors, in the order of names."""
    adapter = source.adapter
    if adapter.masked:
        raise impossible(source, "its delta has a mask", "a delta without a mask", _MASK)
    if adapter.replacements:
        raise impossible(
            source,
            "it holds whole tensors or biases beside the deltas",
            "deltas on linears alone",
            "Merge it with --adapter.",
            adapter.replacements[0].tensor,
        )
    linears = {li.module for li in spec.linears()}
    return {m: _reader(source, m, m in linears) for m in sorted(adapter.deltas)}


def _reader(source: Source, module: str, is_linear: bool) -> Callable[[], LowRank]:
    # Both kinds of delta are structural; one that is bound to a weight has no factors of its own.
    low_rank: Any = getattr(source.adapter.deltas[module], "low_rank", None)
    if low_rank is None or low_rank() is None or not is_linear:
        raise impossible(
            source,
            "its delta depends on the weight, or is no product of two factors"
            if is_linear
            else "a delta on an end of the model",
            "low-rank deltas on linears",
            "Merge it with --adapter, or write merged weights with --target hf.",
            module,
        )
    return low_rank


def _refuse_experts(source: Source, spec: ModelSpec) -> None:
    """PEFT takes factors of single linears of experts for a rank and a scale that all share."""
    inside = {li.module for f in spec.fused_experts() for one in f.linears for li in one}
    found = next((m for m in source.adapter.deltas if m in inside), None)
    if found is not None:
        raise impossible(
            source,
            "a delta on a linear of an expert",
            "deltas on linears that transformers holds as modules",
            "Merge it with --adapter, or write merged weights with --target hf.",
            found,
        )


def _config(
    adapter: Adapter, ranks: dict[str, tuple[int, float]], spec: ModelSpec
) -> dict[str, Any]:
    """A config by which PEFT gives every module its own rank and scale: alpha is their product."""
    transposed = any(li.transposed for li in spec.linears())
    first = next(iter(ranks.values()))[0]
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.facts.get("base_named"),
        "inference_mode": True,
        "r": first,
        "lora_alpha": first,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": sorted(ranks),
        "rank_pattern": {m: r for m, (r, _) in ranks.items()},
        "alpha_pattern": {m: r * scale for m, (r, scale) in ranks.items()},
    }
    digest = adapter.facts.get("base_digest")
    return config if digest is None else {**config, "base_sha256": digest}
