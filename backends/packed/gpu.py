"""A packed linear on a GPU: built once at load, called with any number of rows.

Each number of rows of x has one of four ways (`Path`): the dense weight, the Triton kernel on the
packed weight, cuSPARSELt for 2:4, or the packed weight decompressed slab by slab. Which, is
measured at load on this device (`Tuner`) and can be printed. docs/reference/gpu-execution.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from backends.packed.gpu_tune import Memory, Resident, Tuner
from backends.packed.spec import PackedLinear
from backends.packed.torch_unpack import dense_torch
from backends.packed.triton import ops
from backends.packed.triton.plan import Path, Plan
from backends.packed.triton.weight import Part, SparseWeight, as_tensor

__all__ = ["GpuLinear", "Memory", "Tuner"]


class GpuLinear:
    """y = x W^T + b for one packed linear on one device.

    Attributes:
        spec: what config.json says of it.
        plan: which way for how many rows, with the times that decided; `print(linear)` shows it.
        tensors, layout: what the operator takes after x and bias.
    """

    def __init__(self, spec: PackedLinear, plan: Plan, resident: Resident) -> None:
        """Keep what `plan` uses of `resident`; `build` is the way to make one."""
        self.spec, self.plan = spec, plan
        sparse = resident.sparse
        if not plan.uses(Path.TRITON, Path.SLABS):
            sparse = sparse.emptied()
        dense = resident.dense if plan.uses(Path.DENSE) else _empty(resident.dense)
        packed = resident.half if plan.uses(Path.HALF) else _empty(resident.half)
        self.layout = sparse.layout.numbers
        self.tensors = (*sparse.tensors, dense, packed, plan.tensor())
        ops.register()

    @classmethod
    def build(
        cls,
        spec: PackedLinear,
        parts: Mapping[str, Part],
        *,
        dtype: torch.dtype,
        device: torch.device,
        tuner: Tuner,
        memory: Memory = "fast",
    ) -> GpuLinear:
        """Bring a linear to a device and decide how it is computed.

        Call it while the model is loaded: it times kernels, compiles them, and waits for the
        device. Calls afterwards do none of this.

        Args:
            parts: checked parts (backends.packed.check), as NumPy arrays or tensors.
            dtype: type of the activations: bfloat16, float16 or float32.
            tuner: one for all linears of a device, so that equal ones are measured once.
            memory: `fast` may keep the dense weight beside the packed one; `low` keeps packed
                forms alone and needs the Triton kernels.

        Raises:
            ValueError: `low` where the Triton kernels do not run.
        """
        if memory == "low" and not tuner.triton:
            raise ValueError("memory=low needs the Triton kernels on this device")
        here = {name: as_tensor(part).to(device) for name, part in parts.items()}
        sparse = SparseWeight.of(spec, here)
        dense = dense_torch(spec, here, dtype)
        resident = Resident(sparse, dense, tuner.compressed(spec, dense, dtype))
        return cls(spec, tuner.plan(spec, resident, dtype, memory), resident)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., in] in the type given at load; [..., out] in the same."""
        return torch.ops.sparse_export.packed_linear(x, bias, *self.tensors, self.layout)

    @property
    def nbytes(self) -> int:
        """Bytes that stay on the device."""
        return sum(tensor.nbytes for tensor in self.tensors[:-1])

    def __str__(self) -> str:
        """Kind, size and plan, for the log."""
        s = self.spec
        head = f"{s.kind} {s.values.value} {list(s.shape)}, {self.nbytes} bytes on the device"
        return f"{head}\n{self.plan}"


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.new_empty(0)
