"""The `quantization_config` of a `sparse-24-bitmask` folder, as compressed-tensors writes it.

Source: `ModelCompressor.update_config` and `config/sparse_24_bitmask.py` of compressed-tensors
0.14.0.1. The version is that of the library whose format this is: readers compare with it.
"""

from __future__ import annotations

from math import prod
from typing import Any

from exporter.model import FusedModel

TWO_FOUR = "sparse-24-bitmask"
UNSTRUCTURED = "sparse-bitmask"
VERSION = "0.14.0.1"


def quantization_config(model: FusedModel) -> dict[str, Any]:
    """The value of the key in config.json, from headers alone.

    `global_sparsity` is the share of all values that the files leave out; no reader uses it.
    """
    total = sum(prod(tensor.shape) for tensor in model.tensors.values())
    left_out = sum(n.out_features * n.in_features // 2 for n in model.spec.linears())
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "transform_config": {},
        "sparsity_config": {
            "format": TWO_FOUR,
            "global_sparsity": round(left_out / max(1, total), 6),
            "sparsity_structure": "2:4",
            "targets": ["Linear"],
            "ignore": [model.spec.head.removesuffix(".weight")],
            "registry_requires_subclass": False,
        },
    }
