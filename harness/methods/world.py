"""The processes of a run, as accelerate's launcher sets them up; one by default."""

from __future__ import annotations

import os
from typing import Any

_FSDP = "ACCELERATE_USE_FSDP"  # `accelerate launch --use_fsdp` sets it
_asked: list[bool] = []


def sharded() -> bool:
    """Whether the launcher asked for FSDP; the first call takes the wish out of the environment.

    There it would have transformers load no weights but in the first process, and accelerate wrap
    models itself (see `shard.py`).
    """
    if not _asked:
        _asked.append(os.environ.get(_FSDP, "").lower() in ("1", "true"))
        os.environ.pop(_FSDP, None)
    return _asked[0] and processes() > 1


def processes() -> int:
    """How many there are."""
    return int(_state().num_processes)


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes."""
    return bool(_state().is_main_process)


def wait() -> None:
    """Until all processes are here."""
    _state().wait_for_everyone()
