"""The platform a built library claims."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backends.packed.kernels.compile import LIBRARY, manylinux
from backends.packed.kernels.library import Library


def test_tag_of_the_library(kernels: Library) -> None:
    tag = manylinux("linux_x86_64")
    found = re.fullmatch(r"manylinux_2_(\d+)_x86_64", tag)
    assert found is not None and found[1].encode() in LIBRARY.read_bytes()
    assert manylinux("macosx_11_0_arm64") == "macosx_11_0_arm64"


@pytest.mark.parametrize(
    ("names", "tag"),
    [
        (b"libc.so.6\0GLIBC_2.17\0GLIBC_2.2.5\0", "manylinux_2_17_x86_64"),
        (b"libc.so.6\0libstdc++.so.6\0GLIBC_2.17\0", "linux_x86_64"),
        (b"libc.so.6\0", "linux_x86_64"),
    ],
)
def test_tag_by_what_is_needed(names: bytes, tag: str, tmp_path: Path) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"\x7fELF\0" + names)
    assert manylinux("linux_x86_64", library) == tag
    assert manylinux("linux_x86_64", tmp_path / "none.so") == "linux_x86_64"
