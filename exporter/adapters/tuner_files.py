"""Writing the folder of a PEFT method whose tensors are parts of modules.

Format: peft/config.py and peft/utils/save_and_load.py of PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from exporter.adapters.names import PREFIX
from exporter.adapters.peft_files import write_peft

Parts = Mapping[str, Mapping[str, NDArray[Any]]]  # module -> part -> values


def write_tuner(
    folder: Path,
    peft_type: str,
    parts: Parts,
    options: Mapping[str, Any],
    *,
    base_name: str | None = None,
    apart: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write a folder that the peft library loads; equal inputs give equal bytes.

    Args:
        folder: new or empty.
        peft_type: as PEFT spells it, "LOHA".
        parts: by the base's module names; these become `target_modules`.
        options: further fields of adapter_config.json.
        base_name: what the config says of the base.
        apart: tensors of no module, by their whole names.

    Raises:
        InputRefused: `output-failed`.
    """
    tensors: dict[str, NDArray[Any]] = dict(apart or {})
    for module, own in parts.items():
        for part, values in own.items():
            tensors[f"{PREFIX}{module}.{part}"] = values
    config = {
        "peft_type": peft_type,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base_name,
        "target_modules": sorted(parts),
        **options,
    }
    write_peft(folder, config, tensors)
