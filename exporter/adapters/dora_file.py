"""DoRA's own tensors in a LoRA's file: the magnitude vectors.

Format: peft/tuners/lora/model.py of PEFT 0.21 (`_get_adapter_state_dict`): the tensor
`lora_magnitude_vector`, `[out]` on linears, `[hidden]` on the embedding.
"""

from __future__ import annotations

from exporter.adapters.dora import DoraDelta
from exporter.adapters.factors import Factors
from exporter.adapters.lora_config import LoraConfig
from exporter.adapters.lowrank import LowRankDelta
from exporter.adapters.peft_files import PeftFolder
from exporter.adapters.tensors import largest_magnitude
from exporter.errors import InputRefused


def dora_delta(
    plain: LowRankDelta, factors: Factors, config: LoraConfig, opened: PeftFolder
) -> DoraDelta:
    """`plain` with its magnitude vector.

    Raises:
        InputRefused: `adapter-option` for a magnitude without `use_dora`,
            `adapter-tensor-missing`, `adapter-shape`, `value-not-finite`, `dtype-unsupported`.
    """
    tensors, name = opened.tensors, factors.magnitude
    if not config.use_dora:
        raise InputRefused(
            "adapter-option",
            "a magnitude vector: this is DoRA, whatever the config says",
            expected="use_dora true, or lora_A and lora_B alone",
            file=tensors.label,
            tensor=name,
        )
    if name is None:
        raise InputRefused(
            "adapter-tensor-missing",
            "use_dora is set, and lora_magnitude_vector is not there",
            expected="the magnitude vector of each module",
            file=tensors.label,
            tensor=factors.module,
        )
    width = plain.shape[1] if factors.embedding else plain.shape[0]
    if tensors.entries[name].shape != (width,):
        raise InputRefused(
            "adapter-shape",
            f"shape {list(tensors.entries[name].shape)}",
            expected=f"{[width]}, one length for each "
            + ("column of the embedding" if factors.embedding else "row of the weight"),
            file=tensors.label,
            tensor=name,
        )
    largest_magnitude(tensors, name)
    return DoraDelta(plain, tensors.float32(name), by_column=factors.embedding)
