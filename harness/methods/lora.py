"""Plain LoRA through peft on a frozen base: what most people have, and dense by nature.

Its delta ignores the mask, so a sparse base is only merged with it under a policy that says
what is lost. Here for comparison with the masked methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from exporter.model import CheckedModel
from harness.hf import load_float32
from harness.methods.loop import reproducible, train
from harness.methods.options import Report, Training
from harness.text import Tokens


def train_lora(
    checked: CheckedModel,
    rows: Tokens,
    out: Path,
    options: Training,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    report: Report,
) -> list[float]:
    """Train LoRA factors on every linear of the blocks; saved in `out` by peft itself.

    Raises:
        VerificationFailed: `training-failed`; nothing is written.
    """
    import peft

    names = {linear.module.rpartition(".")[2] for linear in checked.spec.linears()}
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        lora_dropout=0.0,
        bias="none",
        target_modules=sorted(names),
        task_type="CAUSAL_LM",
    )
    with reproducible(options.seed):
        model = cast(Any, peft).get_peft_model(load_float32(checked.checkpoint.root), config)
        losses = train(model, rows, options, report)
    # peft writes the path of this machine into config and model card; the name says enough, and
    # the card is an empty form.
    model.peft_config["default"].base_model_name_or_path = checked.checkpoint.root.resolve().name
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    return losses
