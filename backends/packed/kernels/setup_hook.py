"""Build the kernels while a wheel or an editable install is made (setuptools' cmdclass).

Without a compiler the install goes on without them: CpuLinear then says what is missing, and
`build_linear` takes the way through NumPy. SPARSE_EXPORT_KERNELS=require makes that an error.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools.command.bdist_wheel import bdist_wheel  # pyright: ignore
from setuptools.command.build_py import build_py  # pyright: ignore

_HERE = Path("backends/packed/kernels").resolve()  # a build runs in the project's root


def _compile() -> ModuleType:
    """compile.py by its path: the package itself is not importable in a build."""
    spec = importlib.util.spec_from_file_location("_kernels_compile", _HERE / "compile.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"no compile.py in {_HERE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def built() -> bool:
    """Make the library where it is not there or older than its sources; whether it is there."""
    module = _compile()
    if module.stale():
        try:
            module.build()
        except module.CompileError as error:
            if os.environ.get("SPARSE_EXPORT_KERNELS") == "require":
                raise
            print(f"sparse-export: no CPU kernels in this build\n{error}", file=sys.stderr)
    return module.LIBRARY.exists()


class BuildPy(build_py):
    """build_py that compiles the kernels first, so that they are package data like any other."""

    def run(self) -> None:
        """Compile, then copy."""
        built()
        super().run()


class Wheel(bdist_wheel):
    """A wheel for any Python 3 of one platform: there is a library in it, but no Python ABI."""

    def finalize_options(self) -> None:
        """Mark the wheel as not pure where the library is in it."""
        found = built()
        # So that files lie in the folder for one platform, where auditwheel looks for libraries.
        self.distribution.has_ext_modules = lambda: found
        super().finalize_options()
        self.root_is_pure = not found

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-PLATFORM, or py3-none-any without kernels."""
        found: Any = super().get_tag()
        platform = str(found[2])
        return (
            "py3",
            "none",
            platform if self.plat_name_supplied else _compile().manylinux(platform),
        )
