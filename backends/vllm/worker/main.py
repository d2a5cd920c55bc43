"""main.py FOLDER LENGTH CACHE_BYTES DTYPE: serve a model folder run by vLLM in this process.

It runs in vLLM's environment, where `backends` is a link to the package that started it.
"""

from __future__ import annotations

import sys

from backends.process.serve import serve
from backends.vllm.worker.decoder import Decoder


def build(argv: list[str]) -> Decoder:
    """The session that the arguments ask for."""
    folder, length, cache_bytes, dtype = argv
    return Decoder(folder, int(length), int(cache_bytes), dtype)


if __name__ == "__main__":
    sys.exit(serve(lambda: build(sys.argv[1:])))
