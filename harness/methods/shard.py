"""FSDP: the frozen base cut among the processes, block by block; what is trained stays whole.

torch's FSDP2 directly: accelerate 1.15 wraps only together with an optimiser, does not do it on
CPUs, and would cut the adapter, which is small and which writers and checkpoints read as it is.
Each process loads the base whole, then keeps its share; a block is gathered while it runs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def cut(model: nn.Module, trained: Sequence[nn.Parameter], device: torch.device) -> nn.Module:
    """Keep this process's share of every parameter but those of `trained`; gives `model`."""
    processes = torch.distributed.get_world_size()
    mesh = init_device_mesh(device.type, (processes,))
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for part in (*_blocks(model), model):
        fully_shard(part, mesh=mesh, ignored_params=set(trained))
    return model


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    """The decoder's blocks: members of the longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gather(model: nn.Module) -> None:
    """Every parameter whole again, in every process. A collective."""
    for part in _parts(model):
        part.unshard()


@contextmanager
def gathered(model: nn.Module) -> Generator[None]:
    """The parameters whole for a while; nothing happens to a model that was not cut."""
    gather(model)
    try:
        yield
    finally:
        for part in _parts(model):
            part.reshard()


def average_gradients(trained: Sequence[nn.Parameter], accelerator: Any) -> None:
    """The mean over processes of the gradients of what stays whole."""
    for parameter in trained:
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))
