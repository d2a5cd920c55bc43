"""main.py FOLDER WORK LENGTH CHUNK CACHE THREADS: serve a decoder run by DeepSparse.

FOLDER is only read. WORK is an empty folder for the static variants; it may be removed once
the session is ready.
"""

from __future__ import annotations

import os
import sys
import types
from importlib import import_module
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_BACKENDS = os.path.dirname(os.path.dirname(_HERE))


def _stub(name: str, folder: str) -> None:
    # Packages made by hand: importing ours would run their __init__, and putting their parent
    # on the import path could bring a numpy that this engine computes wrongly with.
    package = types.ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def build(argv: list[str]) -> Any:
    """The session that the arguments ask for."""
    decoder: Any = import_module("decoder")
    folder, work, length, chunk, cache, threads = argv
    return decoder.Decoder(folder, work, int(length), int(chunk), cache, int(threads) or None)


if __name__ == "__main__":
    _stub("backends", _BACKENDS)
    _stub("backends.process", os.path.join(_BACKENDS, "process"))
    sys.path.insert(0, _HERE)
    from backends.process.serve import serve

    sys.exit(serve(lambda: build(sys.argv[1:])))
