"""vllm_load.py FOLDER [--sample]: load a model in vLLM and print time and memory as JSON.

Runs in vLLM's own environment.
Only the loading of weights counts (vllm/model_executor/model_loader/base_loader.py,
`load_model`): making the modules, reading, checking, decompressing, and vLLM's own repacking.
Memory is what the process holds beyond what it held before, pages of mapped files included
(`VmHWM` of /proc/self/status), and with `--sample` also without them (`RssAnon`; the thread that
samples takes its share of the interpreter, so that such a run's seconds say nothing).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

_EVERY = 0.002  # seconds between samples


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


class Sampler(threading.Thread):
    """The largest `RssAnon` while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._stop_it = threading.Event()

    def run(self) -> None:
        """Until `end`."""
        while not self._stop_it.wait(_EVERY):
            self.most = max(self.most, status("RssAnon"))

    def end(self) -> int:
        """Stop; the largest value seen."""
        self._stop_it.set()
        self.join()
        return self.most


def watch(found: dict[str, Any], sample: bool) -> None:
    """Let vLLM's loader note time and memory in `found`."""
    loader: Any = import_module("vllm.model_executor.model_loader.base_loader").BaseModelLoader
    load = loader.load_model

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, anonymous = status("VmRSS"), status("RssAnon")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (man 5 proc)
        sampler = Sampler() if sample else None
        if sampler is not None:
            sampler.start()
        start = time.perf_counter()
        model = load(self, *args, **kwargs)
        found["seconds"] = time.perf_counter() - start
        found["peak"] = status("VmHWM") - before
        if sampler is not None:
            found["peak_anonymous"] = sampler.end() - anonymous
        found["after_anonymous"] = status("RssAnon") - anonymous
        return model

    loader.load_model = timed


def main(folder: str, sample: bool) -> dict[str, Any]:
    """Seconds and bytes."""
    found: dict[str, Any] = {}
    vllm: Any = import_module("vllm")
    watch(found, sample)
    started = time.perf_counter()
    vllm.LLM(
        model=folder,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=1,
        kv_cache_memory_bytes=64 << 20,
    )
    found["start_seconds"] = time.perf_counter() - started
    found["disk"] = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], "--sample" in sys.argv)))
