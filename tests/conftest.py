"""What all tests share: hypothesis' profile, and the environment behind the mark `deepsparse`."""

from __future__ import annotations

import os

# Before anything imports triton: its kernels run in its interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

from backends.deepsparse.runtime import RUNTIME
from exporter.contract import RuntimeStatus
from exporter.errors import EngineUnfit

# No deadline: what an example takes on a busy machine says nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def deepsparse_runtime() -> RuntimeStatus:
    """The environment, made if it is not there; its lock lets one of the workers make it.

    Where it cannot be made the test fails. Only SPARSE_EXPORT_NO_DEEPSPARSE=1 turns that into
    a skip, which pytest reports with the reason.
    """
    try:
        return RUNTIME.install()
    except EngineUnfit as error:
        if os.environ.get("SPARSE_EXPORT_NO_DEEPSPARSE") == "1":
            pytest.skip(f"SPARSE_EXPORT_NO_DEEPSPARSE=1 and {error.found}")
        pytest.fail(f"{error}\nSPARSE_EXPORT_NO_DEEPSPARSE=1 leaves these tests out.")


@pytest.fixture(autouse=True)
def _engine_of_marked_tests(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("deepsparse"):
        request.getfixturevalue("deepsparse_runtime")
