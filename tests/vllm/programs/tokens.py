"""tokens.py JOBS: greedy tokens of several folders, one engine after the other in this process.

JOBS is a JSON list of `{"folder": ..., ...}` with further arguments of `LLM`, and `env`, variables
for this engine. Prints, as its last line, a JSON list: of each job its tokens, of three prompts, or
the error that kept it from loading.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

PROMPTS = [[3, 14, 15, 92, 65, 35], list(range(40, 61)), [7]]
NEW = 24


def run(folder: str, env: dict[str, str] | None = None, **options: Any) -> Any:
    """Greedy tokens of three prompts."""
    os.environ.update(env or {})
    chosen: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "max_model_len": 64,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": 16 << 20,
        "enable_prefix_caching": False,
        "seed": 0,
        **options,
    }
    engine = LLM(model=folder, **chosen)
    ask = SamplingParams(temperature=0.0, max_tokens=NEW, detokenize=False, ignore_eos=True)
    made = engine.generate([{"prompt_token_ids": p} for p in PROMPTS], ask, use_tqdm=False)
    tokens = [list(request.outputs[0].token_ids) for request in made]
    engine.llm_engine.engine_core.shutdown()
    del engine
    return tokens


def main(jobs: list[dict[str, Any]]) -> list[Any]:
    """What came of each job."""
    results: list[Any] = []
    before = dict(os.environ)
    for job in jobs:
        os.environ.clear()
        os.environ.update(before)
        try:
            results.append(run(**job))
        except Exception as error:  # noqa: BLE001 - whatever keeps a folder from loading
            traceback.print_exc()
            results.append(f"{type(error).__name__}: {error}")
        gc.collect()
        cleanup_dist_env_and_memory()
    return results


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
