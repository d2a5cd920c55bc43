"""Compile the kernels: one translation unit per instruction set, one library without Python's ABI.

Standard library only, and nothing of this package: setup_hook.py loads this file while a wheel is
being built, before anything is installed. `python -m backends.packed.kernels.compile` builds in
place.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LIBRARY", "Build", "CompileError", "build", "compiler", "manylinux", "stale"]

SOURCES = Path(__file__).with_name("src")
LIBRARY = Path(__file__).with_name("lib") / "libsparse_export_kernels.so"
_COMMON = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-exceptions -fno-rtti -Wall -Wextra"
# Products and sums round apart everywhere, so that instruction sets agree to the last bit of codes;
# and sums stay in the registers they were written for.
_STRICT = "-ffp-contract=off -fno-tree-reassoc"
_AVX2 = "-mavx2 -mfma -mf16c -mpopcnt -mbmi -mbmi2 -mtune=haswell"
# icelake-server: g++ 12 has no znver4, and znver3 spills general registers through vector ones.
_AVX512 = (
    _AVX2.replace("haswell", "icelake-server")
    + " -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512"
    # g++ 12 warns of the undefined registers in its own header.
    + " -Wno-maybe-uninitialized -Wno-uninitialized"
)
_VNNI = f"{_AVX512} -mavx512vbmi -mavx512vbmi2 -mavx512vnni"
_BF16 = f"{_VNNI} -mavx512bf16"
_COMMON_UNITS = (
    *("isa", "pool", "memory", "weight", "rows", "slots", "run", "portable"),
    *("steps", "decoder", "decode", "onnx_op", "masked", "masked_portable"),
)
_VENDORED = SOURCES / "onnxruntime"  # headers of others: no warnings of theirs
_X86_UNITS = {
    "avx2": (1, _AVX2),
    "avx512": (2, _AVX512),
    "avx512_vnni": (3, _VNNI),
    "avx512_bf16": (4, _BF16),
}
_PARTS = {
    "avx2": ("avx2", "steps_avx2", "masked_avx2"),
    "avx512": ("avx512", "masked_avx512"),
}  # files of instruction sets that have several
_SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all -g -DSE_SANITIZE"


class CompileError(Exception):
    """No compiler, or one that refuses a unit that every machine needs."""


@dataclass(frozen=True)
class Build:
    """How to build: `emulate` runs the 512-bit units' logic on AVX2, for tests of that logic."""

    emulate: bool = False
    sanitize: bool = False
    driver: Path | None = None  # a C++ file with main(): an executable in place of a library


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++."""
    named = os.environ.get("CXX")
    names = [named] if named else ["c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name.split()[0]))), None)


def stale(target: Path = LIBRARY) -> bool:
    """Whether `target` is missing or older than a source."""
    if not target.exists():
        return True
    made = target.stat().st_mtime
    files = [*SOURCES.rglob("*"), Path(__file__)]
    return any(source.stat().st_mtime > made for source in files)


def build(target: Path = LIBRARY, how: Build | None = None) -> Path:
    """Compile and link to `target`, replacing it at once.

    A compiler that does not know an x86 instruction set leaves its unit out.

    Raises:
        CompileError: with the compiler's words.
    """
    how = how or Build()
    found = compiler()
    if found is None:
        raise CompileError("no C++ compiler: none of $CXX, c++, g++, clang++ was found")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = _objects(found, Path(folder), how)
        linked = Path(folder) / target.name
        _run(_link(found, objects, linked, how))
        os.replace(linked, target)
    return target


def manylinux(wanted: str, library: Path = LIBRARY) -> str:
    """`linux_ARCH` as the manylinux tag of PEP 600 that the built library meets.

    That is a library that needs no other one but glibc's, and no symbol of a later glibc than the
    tag names; both are read from the file, so an older build machine gives a tag for older ones.
    """
    if not wanted.startswith("linux_") or not library.exists():
        return wanted
    text = library.read_bytes()
    needed = {name.split(b".")[0] for name in re.findall(rb"\0(lib[\w+-]+\.so[.\d]*)(?=\0)", text)}
    versions = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", text)
    if needed - {b"libc", b"libm", b"libpthread", b"libdl", b"librt"} or not versions:
        return wanted
    major, minor = max((int(a), int(b)) for a, b in versions)
    return f"manylinux_{major}_{minor}_{wanted.removeprefix('linux_')}"


def _objects(found: str, folder: Path, how: Build) -> list[Path]:
    extra = (_SANITIZE.split() if how.sanitize else []) + (["-DSE_EMULATE"] if how.emulate else [])
    extra += os.environ.get("CXXFLAGS", "").split()
    common = _COMMON.replace("-O3", "-O1") if how.sanitize or how.emulate else _COMMON
    base = [found, *common.split(), *_STRICT.split(), *extra]
    units, objects = 1, list[Path]()
    x86 = dict(_X86_UNITS) if platform.machine() in ("x86_64", "AMD64") else {}
    if how.sanitize and not how.emulate:
        # Sanitisers make the 512-bit units' unrolled loops minutes of compiling.
        x86 = {name: unit for name, unit in x86.items() if name == "avx2"}
    for name, (bit, flags) in x86.items():
        chosen = _AVX2 if how.emulate else flags
        try:
            objects += [
                _unit(base, each, chosen.split(), folder) for each in _PARTS.get(name, (name,))
            ]
            units |= 1 << bit
        except CompileError as error:
            print(f"kernels: {name} is left out\n{error}", file=sys.stderr)
    define = [f"-DSE_UNITS={units}", f"-isystem{_VENDORED}"]
    objects += [_unit(base, name, define, folder) for name in _COMMON_UNITS]
    if how.driver:
        objects.append(_unit([*base, f"-I{SOURCES}"], str(how.driver), [], folder))
    return objects


def _unit(base: Sequence[str], name: str, flags: Sequence[str], folder: Path) -> Path:
    source = Path(name) if name.endswith(".cpp") else SOURCES / f"{name}.cpp"
    target = folder / f"{source.stem}.o"
    _run([*base, *flags, "-c", str(source), "-o", str(target)])
    return target


def _link(found: str, objects: Sequence[Path], target: Path, how: Build) -> list[str]:
    command = [found, *map(str, objects), "-o", str(target), "-pthread"]
    command += [] if how.driver else ["-shared"]
    if how.sanitize:
        command += _SANITIZE.split()
    elif sys.platform == "linux":
        # No C++ library of the machine's own: one wheel for all of them.
        command += ["-static-libstdc++", "-static-libgcc", "-Wl,--gc-sections", "-s"]
        # Threads of the pool run its code: an engine that unloads it must not take that away.
        command += ["-Wl,-z,nodelete"]
    return command


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    if done.stderr and os.environ.get("SPARSE_EXPORT_COMPILE_STRICT"):
        raise CompileError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    print(build())
