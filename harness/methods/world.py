"""The processes of a run, as accelerate's launcher sets them up; one by default."""

from __future__ import annotations

from typing import Any


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
