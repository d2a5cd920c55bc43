"""DeepSparse's managed environment.

Its lock holds the engine and its own text-generation pipeline without torch: the pipeline
needs transformers and datasets to be importable, and runs on them alone.
"""

from __future__ import annotations

from pathlib import Path

from backends.cpu import linux_x86_avx2
from backends.interpreters import PythonRange
from backends.runtimes import ManagedRuntime

_HERE = Path(__file__).parent
LICENCE = (
    "evaluation only: the Community licence of DeepSparse 1.8.0 allows use in development and "
    "testing, not in production; its maker has ended the product"
)
WORKER = _HERE / "worker" / "main.py"
RUNTIME = ManagedRuntime(
    name="deepsparse",
    engine="DeepSparse",
    version="1.8.0",
    python=PythonRange((3, 8), (3, 12)),
    lock=_HERE / "runtime.lock",
    check=_HERE / "worker" / "check.py",
    unfit=linux_x86_avx2,
    licence=LICENCE,
    # It reports its use to its maker over the network unless told not to.
    env={"NM_DISABLE_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
)
