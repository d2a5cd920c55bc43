"""The fingerprint: what is read, and what never is."""

from __future__ import annotations

import getpass
import platform
from pathlib import Path

import pytest

from bench import fingerprint as module
from bench.fingerprint import fingerprint, read_cpuinfo, read_meminfo
from exporter.errors import EngineUnfit

_CPUINFO = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx2 fma avx512f avx512_vnni

processor\t: 1
model name\t: Other
"""


def test_reading_speed_is_measured_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint().read_bytes_per_second is None
    found = fingerprint(ceiling=True).read_bytes_per_second
    assert found is not None and 1e8 < found < 1e13

    def missing() -> object:
        raise EngineUnfit("engine-missing", "not built")

    monkeypatch.setattr("bench.kernels.run.library", missing)
    assert fingerprint(ceiling=True).read_bytes_per_second is None


def test_cpu_and_flags_are_those_of_the_first_core() -> None:
    name, flags = read_cpuinfo(_CPUINFO)
    assert name == "Some CPU @ 2.00GHz"
    assert {"avx512_vnni", "avx2"} <= flags and "amx_tile" not in flags
    assert read_cpuinfo("") == ("", frozenset())


def test_memory_is_in_bytes() -> None:
    assert read_meminfo("MemTotal:       16384 kB\nMemFree: 1 kB\n") == 16384 * 1024
    assert read_meminfo("") is None


def test_names_of_user_host_and_folder_stay_out() -> None:
    text = fingerprint().model_dump_json()
    for private in (str(Path.home()), platform.node(), str(Path.cwd())):
        assert private not in text or len(private) < 3
    if getpass.getuser() not in ("root", "user"):
        assert getpass.getuser() not in text


def test_what_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_text", lambda path: None)
    found = fingerprint(packages=("numpy", "no-such-package"))
    assert found.governor is None and found.memory_bytes is None
    assert found.cpu == platform.machine() and not any(found.cpu_flags.values())
    assert list(found.packages) == ["numpy"]
