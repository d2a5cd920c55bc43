"""Compress a dense folder by compressed-tensors 0.14.0.1 itself, or let it decompress one.

`write_ct(dense, out)` and `read_ct(folder, out)` in a test; below `__main__` is what runs beside
that library, in a process of its own: a job a line on standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FORMATS = {"sparse-24-bitmask": "2:4", "sparse-bitmask": "unstructured"}


def write_ct(dense: Path, out: Path, form: str = "sparse-24-bitmask") -> Path:
    """Make `out`: the model of the folder `dense` compressed in `form`; gives `out`.

    The tokenizer is copied, so that an engine can load the folder.
    """
    from tests.legacy.ct_env import run_with_ct

    run_with_ct(Path(__file__), "compress", str(dense), str(out), form)
    return out


def read_ct(folder: Path, out: Path) -> Path:
    """Make the safetensors file `out` of the weights that compressed-tensors reads of `folder`."""
    from tests.legacy.ct_env import run_with_ct

    run_with_ct(Path(__file__), "decompress", str(folder), str(out))
    return out


def _compress(dense: Path, out: Path, form: str) -> None:
    import shutil

    from compressed_tensors.compressors import ModelCompressor  # pyright: ignore
    from compressed_tensors.config import SparsityCompressionConfig  # pyright: ignore
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
    config: Any = SparsityCompressionConfig.load_from_registry(
        form, sparsity_structure=FORMATS[form], targets=["Linear"], ignore=["lm_head"]
    )
    compressor: Any = ModelCompressor(sparsity_config=config)
    state = compressor.compress(model)
    model.save_pretrained(out, state_dict=state)
    compressor.update_config(str(out))
    for file in dense.glob("tokenizer*"):
        shutil.copy(file, out)


def _decompress(folder: Path, out: Path) -> None:
    import json

    from compressed_tensors.compressors import ModelCompressor  # pyright: ignore
    from safetensors.torch import save_file

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    compressor: Any = ModelCompressor.from_compression_config(config)
    read = compressor.sparsity_compressor.decompress(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in read}, out)


def _serve() -> None:
    import json
    import os
    import traceback

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        verb, first, second, *rest = json.loads(line)
        try:
            (_compress if verb == "compress" else _decompress)(Path(first), Path(second), *rest)
            answer = "done"
        except Exception as error:  # noqa: BLE001 - told to the test, whatever it is
            traceback.print_exc()
            answer = repr(error)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _serve()
