"""Packed folders in plain transformers: importing this registers the quantiser `sparse-export`.

After `import backends.packed.transformers`, `AutoModelForCausalLM.from_pretrained(folder)` reads a
packed folder: each packed linear is checked, unpacked to a plain `nn.Linear` in the type asked
for, and what comes out is a dense model like any other, `save_pretrained` included. For evaluation
(lm-eval) and for verification; nothing runs faster here. docs/how-to/packed-in-transformers.md.
"""

from __future__ import annotations

from transformers.quantizers.auto import register_quantization_config, register_quantizer

from backends.packed.spec import METHOD
from backends.packed.transformers.config import PackedConfig
from backends.packed.transformers.quantiser import PackedQuantizer

__all__ = ["PackedConfig", "PackedQuantizer"]

register_quantization_config(METHOD)(PackedConfig)
register_quantizer(METHOD)(PackedQuantizer)
