"""Full fine-tunes and LISA: a whole Hugging Face model, merged as its difference from the base.

LISA (Pan et al. 2024, arXiv 2403.17919; LMFlow, pipeline/utils/lisa_trainer.py) trains whole
weights of a few layers at a time and leaves a whole model. Format: docs/formats/full.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from exporter.adapters.base import Adapter, BaseIdentity
from exporter.adapters.difference import Difference, check_same_model, difference, stored
from exporter.adapters.identity import base_facts
from exporter.adapters.peft_files import CONFIG as PEFT_CONFIG
from exporter.adapters.peft_files import label
from exporter.arch.model_spec import ModelSpec
from exporter.check.model import check_model
from exporter.errors import InputRefused
from exporter.model import CheckedModel
from exporter.store.checkpoint import Checkpoint
from exporter.store.listing import CONFIG


class FullFamily:
    """Reads a whole model of the base's architecture."""

    name: ClassVar[str] = "full"

    def claims(self, folder: Path) -> bool:
        """Whether the folder holds a model's config and no adapter's."""
        return (folder / CONFIG).is_file() and not (folder / PEFT_CONFIG).exists()

    def read(self, folder: Path, spec: ModelSpec, base: BaseIdentity) -> Adapter:
        """Check the model as a base is checked, and compare it with the base.

        Raises:
            InputRefused: `adapter-base`, `adapter-empty`, and those of `Checkpoint.open` and
                `check_model`.
        """
        other = open_fine_tune(folder, spec)
        found = difference(other, spec, base, stored(other.checkpoint))
        return fine_tune(self.name, folder, other, found, base, None, {})


def open_fine_tune(folder: Path, spec: ModelSpec) -> CheckedModel:
    """The fine-tuned model, all its values checked.

    Raises:
        InputRefused: see `FullFamily.read`.
    """
    checkpoint = Checkpoint.open(folder)
    other = check_model(checkpoint)
    check_same_model(other.spec, spec, label(folder, CONFIG))
    return other


def fine_tune(
    family: str,
    folder: Path,
    other: CheckedModel,
    found: Difference,
    base: BaseIdentity,
    base_sha256: str | None,
    facts: dict[str, Any],
) -> Adapter:
    """The adapter of what was found to differ.

    Raises:
        InputRefused: `adapter-empty` where nothing does, `adapter-base`.
    """
    if not found.deltas and not found.replacements:
        raise InputRefused(
            "adapter-empty",
            "every tensor equals the base's",
            expected="a fine-tuned model",
            file=folder.name or folder.resolve().name,
        )
    recorded = other.checkpoint.config.get("_name_or_path")
    named = recorded if isinstance(recorded, str) else None
    return Adapter(
        family=family,
        name=folder.name or folder.resolve().name,
        deltas=found.deltas,
        replacements=found.replacements,
        unties=found.unties,
        tensors_used=len(other.checkpoint.entries),
        facts={
            **base_facts(named, base_sha256, base, label(folder, CONFIG)),
            **facts,
            "linears_changed": len(found.deltas),
            "tensors_replaced": sorted(r.tensor for r in found.replacements),
        },
    )
