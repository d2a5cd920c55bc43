"""The kernel library through ctypes: its functions, instruction sets and threads."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path

from backends.packed.kernels.compile import LIBRARY
from exporter.errors import EngineUnfit

__all__ = ["ISA_VARIABLE", "Desc", "Isa", "Job", "Library", "library"]

ABI = 10
ISA_VARIABLE = "SPARSE_EXPORT_ISA"


class Isa(IntEnum):
    """Instruction sets, each a step up; the numbers are the library's."""

    PORTABLE = 0
    AVX2 = 1
    AVX512 = 2
    AVX512_VNNI = 3
    AVX512_BF16 = 4

    @property
    def label(self) -> str:
        """As the environment variable has it: portable, avx2, avx512, avx512-vnni, avx512-bf16."""
        return self.name.lower().replace("_", "-")


class Desc(Structure):
    """`se_desc` of src/abi.h: one packed linear."""

    _fields_ = (
        ("kind", c_int32),
        ("values_type", c_int32),
        ("n", c_int32),
        ("m", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group", c_int64),
        ("mask", c_void_p),
        ("mask_bytes", c_int64),
        ("values", c_void_p),
        ("values_bytes", c_int64),
        ("starts", c_void_p),
        ("starts_count", c_int64),
        ("scales", c_void_p),
        ("scales_count", c_int64),
    )


class Job(Structure):
    """`se_job` of src/abi.h: one product of a call."""

    _fields_ = (
        ("linear", c_void_p),
        ("y", c_void_p),
        ("ldy", c_int64),
        ("bias", c_void_p),
    )


class Library:
    """A loaded kernel library.

    Raises:
        EngineUnfit: `engine-missing` where the file cannot be loaded, `engine-unfit` for another
            version of the interface.
    """

    def __init__(self, path: Path) -> None:
        """Load the file and check its version."""
        try:
            self._c = ctypes.CDLL(str(path))
        except OSError as error:
            raise EngineUnfit(
                "engine-missing",
                f"the CPU kernels cannot be loaded: {error}",
                expected="a build of them: `python -m backends.packed.kernels.compile`",
                file=str(path),
            ) from error
        c = self._c
        found = int(c.se_abi_version()) if hasattr(c, "se_abi_version") else 0
        if found != ABI:
            raise EngineUnfit(
                "engine-unfit",
                f"the CPU kernels have interface {found}",
                expected=f"interface {ABI}; build them again",
                file=str(path),
            )
        c.se_create.argtypes = (POINTER(Desc), c_int32, POINTER(c_void_p))
        c.se_destroy.argtypes = (c_void_p,)
        c.se_destroy.restype = None
        c.se_bytes.argtypes = (c_void_p,)
        c.se_bytes.restype = c_int64
        c.se_row_bytes.argtypes = (c_void_p,)
        c.se_row_bytes.restype = c_int64
        c.se_run.argtypes = (
            c_void_p,
            c_int64,
            c_void_p,
            c_int32,
            c_int64,
            c_int64,
            c_int32,
            c_int32,
        )
        c.se_run_one.argtypes = (
            c_void_p,
            c_void_p,
            c_void_p,
            c_int32,
            c_int64,
            c_int64,
            c_void_p,
            c_int64,
            c_int32,
            c_int32,
        )
        c.se_unpack.argtypes = (c_void_p, c_int64, c_int64, POINTER(c_float))
        c.se_set_threads.restype = None
        c.se_share_threads.argtypes = (c_void_p, c_int32)
        c.se_share_threads.restype = None
        c.se_read.argtypes = (c_void_p, c_int64, c_int64)
        c.se_read.restype = c_uint64
        self.create, self.destroy, self.bytes = c.se_create, c.se_destroy, c.se_bytes
        self.row_bytes = c.se_row_bytes
        self.run, self.run_one = c.se_run, c.se_run_one
        self.unpack, self.read = c.se_unpack, c.se_read
        c.se_decoder_create.argtypes = (c_void_p, POINTER(c_void_p))
        c.se_decoder_destroy.argtypes = (c_void_p,)
        c.se_decoder_destroy.restype = None
        c.se_decoder_run.argtypes = (c_void_p, c_void_p)
        self.decoder_create, self.decoder_destroy = c.se_decoder_create, c.se_decoder_destroy
        self.decoder_run = c.se_decoder_run
        pointer, size = c_void_p, c_int64
        c.se_masked_forward.argtypes = (pointer, pointer, size, pointer)
        c.se_masked_backward.argtypes = (pointer, pointer, size, pointer)
        c.se_masked_factors.argtypes = (pointer, pointer, pointer, size, pointer, pointer)
        self.masked_forward, self.masked_backward = c.se_masked_forward, c.se_masked_backward
        self.masked_factors = c.se_masked_factors

    @property
    def operators(self) -> int:
        """Version of the operators for onnxruntime (src/onnx_op.cpp); 0 for a build without."""
        return int(self._c.se_operators()) if hasattr(self._c, "se_operators") else 0

    def isas(self) -> list[Isa]:
        """Instruction sets that this build has and this machine runs, the best last."""
        return [isa for isa in Isa if self._c.se_isa_runs(int(isa))]

    def choose(self, isa: Isa | None = None) -> Isa:
        """`isa`, or what SPARSE_EXPORT_ISA names, or the best there is.

        Raises:
            EngineUnfit: `engine-unfit` for one that does not run here.
        """
        here = self.isas()
        named = os.environ.get(ISA_VARIABLE, "") if isa is None else isa.label
        if not named:
            return here[-1]
        for each in here:
            if each.label == named:
                return each
        raise EngineUnfit(
            "engine-unfit",
            f"instruction set {named!r:.40} (argument or {ISA_VARIABLE})",
            expected=f"one that runs here: {', '.join(each.label for each in here)}",
        )

    @property
    def threads(self) -> int:
        """Threads of a call, the caller's included."""
        return int(self._c.se_threads())

    @threads.setter
    def threads(self, count: int) -> None:
        self._c.se_set_threads(count)

    def share_threads(self, count: int) -> bool:
        """Run calls by the OpenMP that this process has loaded; False, and no change, without one.

        For engines whose own operators take turns with ours: one set of threads, bound to cores
        as the engine bound it. What a preloaded library puts in libgomp's place is used too.

        Args:
            count: threads of its parallel regions, as torch.get_num_threads() tells; 0: back to
                the own pool.
        """
        if count < 1:
            self._c.se_share_threads(None, 0)
            return True
        try:
            function = ctypes.CDLL(None).GOMP_parallel
        except AttributeError:
            return False
        self._c.se_share_threads(ctypes.cast(function, c_void_p), count)
        return True


@cache
def library(path: Path = LIBRARY) -> Library:
    """The library of this installation, or another file; loaded once.

    Raises:
        EngineUnfit: as `Library`.
    """
    return Library(path)
