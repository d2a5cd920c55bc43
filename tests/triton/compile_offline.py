"""Compile the kernels for GPUs that are not here, down to machine code; prints JSON.

Run in a process of its own, without TRITON_INTERPRET: the way is chosen when they are imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from backends.packed.triton import kernels

POINTERS = {
    "mask": "*i32", "offsets": "*i32", "starts": "*i64", "scales": "*bf16", "parts": "*fp32",
}  # fmt: skip
EXTENTS = ("out_features", "in_features", "x_pitch", "rows", "elements")
TYPES: dict[str, tuple[str, int, int, Any]] = {  # pointer, step, code, type of the product
    "bf16": ("*bf16", 2, kernels.FLOAT, tl.bfloat16),
    "fp16": ("*fp16", 2, kernels.FLOAT, tl.float16),
    "fp32": ("*fp32", 1, kernels.FLOAT, tl.float32),
    "int8": ("*i8", 4, kernels.INT8, tl.bfloat16),
    "int4": ("*u8", 4, kernels.INT4, tl.bfloat16),
    "fp8": ("*u8", 4, kernels.FP8, tl.bfloat16),
}


def build(kernel: Any, values: str, capability: int, constants: dict[str, Any]) -> Any:
    """What Triton compiles at a launch with such arguments: pointers aligned to 16 bytes, as
    torch's are, and extents and pitches that are multiples of 16, as a model's are."""
    activations = {"fp16": "*fp16", "fp32": "*fp32"}.get(values, "*bf16")
    pointers = POINTERS | {"values": TYPES[values][0], "x": activations, "y": activations}
    pointers["bias"] = activations
    signature = {n: pointers.get(n, "i32") for n in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    multiples = [n for n in signature if signature[n][0] == "*" or n in EXTENTS]
    aligned = {places[n]: [["tt.divisibility", 16]] for n in multiples}
    source = ASTSource(kernel, signature, {places[n]: v for n, v in constants.items()}, aligned)
    return triton.compile(source, GPUTarget("cuda", capability, 32), {"num_warps": 4})


def spilled(ptx: str, capability: int) -> int:
    """Bytes of registers that the assembler had to put into memory, as it says itself."""
    arch = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={arch}", str(source)]
        target = ["-o", str(source.with_suffix(".cubin"))]
        done = subprocess.run(command + target, capture_output=True, text=True, check=True)
    return int(re.findall(r"(\d+) bytes spill stores", done.stderr)[0])


def variants(capability: int) -> Any:
    """Name and what was compiled: every value type, and every kind of two of them."""
    for values, (_, step, code, compute) in TYPES.items():
        for kind, name in enumerate(("ragged", "nm", "dense")):
            if kind and values not in ("bf16", "int4"):
                continue
            scaled = code != kernels.FLOAT
            common = {
                "KIND": kind, "STEP": step, "CODE": code, "SLOTS": 512 * (kind == kernels.NM),
                "SCALED": scaled, "COMPUTE": compute, "BR": 2,
            }  # fmt: skip
            block = {"GROUPED": scaled, "BIASED": True, "SPLITS": 1, "BM": 64 if kind else 16}
            found = build(kernels.multiply, values, capability, common | block)
            yield f"multiply {values} {name}", found
            if kind == kernels.RAGGED:
                yield f"expand {values} {name}", build(kernels.expand, values, capability, common)
    constants = {"SPLITS": 4, "BIASED": True, "BLOCK": 1024}
    yield "add_splits", build(kernels.add_splits, "bf16", capability, constants)


def main(capability: int) -> None:
    """One line of JSON: variant -> what its PTX has."""
    report: dict[str, dict[str, int]] = {}
    for name, found in variants(capability):
        ptx = found.asm["ptx"]
        report[name] = {
            "cubin": len(found.asm["cubin"]),
            "popc": ptx.count("popc.b32"),
            "mma": ptx.count("mma.sync") + ptx.count("wgmma.mma_async"),
            "atom": len(re.findall(r"\b(?:atom|red)\.", ptx)),
            "spilled": spilled(ptx, found.metadata.target.arch),
            "shared": found.metadata.shared,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]))
