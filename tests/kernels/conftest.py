"""The kernels, built where they are not, and a build that runs the 512-bit units on AVX2."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from backends.packed.kernels.compile import LIBRARY, Build, build, stale
from backends.packed.kernels.library import Library, library

BUILDS = Path(__file__).parents[2] / "build" / "kernels"


def built(target: Path, how: Build | None = None) -> Path:
    """`target`, made by one process where several ask; a machine without a compiler fails here."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stale(target):
            build(target, how)
    return target


@pytest.fixture(scope="session")
def kernels() -> Library:
    """The library of this checkout."""
    built(LIBRARY)
    return library()


@pytest.fixture(scope="session", params=["native", "emulated"])
def each_build(request: pytest.FixtureRequest) -> Library:
    """What runs here, and all units whether they run here or not."""
    return request.getfixturevalue("kernels" if request.param == "native" else "emulated")


@pytest.fixture(scope="session")
def emulated() -> Library:
    """All units: those this machine has not run their logic over AVX2."""
    return library(built(BUILDS / "emulated.so", Build(emulate=True)))
