"""Which models the training and activation-based pruning here are written for."""

from __future__ import annotations

from exporter.errors import InputRefused
from exporter.model import CheckedModel


def require_torch_linears(checked: CheckedModel, doing: str) -> None:
    """Refuse a model whose linears are no `torch.nn.Linear` (GPT-2's Conv1D, fused experts).

    Raises:
        InputRefused: `arch-unsupported`.
    """
    if checked.checkpoint.transposed or checked.spec.fused_experts():
        raise InputRefused(
            "arch-unsupported",
            f"{doing} a {checked.spec.family} model",
            expected="a decoder of Llama's form; magnitude pruning and exports take both",
            file="config.json",
        )
