"""Checks of one module's tensors and ranks, shared by the PEFT methods that are no LoRA."""

from __future__ import annotations

from exporter.adapters.tuner import ConfigT, Opened
from exporter.errors import InputRefused

_FLOAT32_MAX = 3.4e38


def require_parts(opened: Opened[ConfigT], module: str, *wanted: str) -> list[str]:
    """Tensor names of exactly the parts `wanted`, in their order.

    Raises:
        InputRefused: `adapter-tensor-missing`, `adapter-tensor-unused`.
    """
    own = opened.parts[module]
    for part in wanted:
        if part not in own:
            raise InputRefused(
                "adapter-tensor-missing",
                f"{', '.join(sorted(own))} without {part}",
                expected=", ".join(wanted),
                file=opened.file,
                tensor=module,
            )
    for part, tensor in own.items():
        if part not in wanted:
            raise InputRefused(
                "adapter-tensor-unused",
                f"no tensor {part} belongs here",
                expected=", ".join(wanted),
                file=opened.file,
                tensor=tensor,
            )
    return [own[part] for part in wanted]


def check_shape(opened: Opened[ConfigT], tensor: str, want: tuple[int, ...], axes: str) -> None:
    """The tensor has the shape that base and config ask for.

    Raises:
        InputRefused: `adapter-shape`.
    """
    found = opened.folder.tensors.entries[tensor].shape
    if found != want:
        raise InputRefused(
            "adapter-shape",
            f"shape {list(found)}",
            expected=f"{list(want)} {axes}, by the base and the config",
            file=opened.file,
            tensor=tensor,
        )


def check_fits(opened: Opened[ConfigT], module: str, top: float) -> None:
    """`top`, the largest magnitude that a delta may reach, is a float32.

    Raises:
        InputRefused: `value-overflow`.
    """
    if top > _FLOAT32_MAX:
        raise InputRefused(
            "value-overflow",
            f"the delta may reach {top:.3g}",
            expected="values that fit float32",
            file=opened.file,
            tensor=module,
            hint="Check the scale and the factors: training has diverged.",
        )
