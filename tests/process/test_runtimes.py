"""Managed environments: made whole or not at all, once, and a status that says why not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from backends import cpu
from backends.interpreters import PythonRange, find_python
from backends.runtimes import ManagedRuntime, runtimes_home
from exporter.errors import EngineUnfit

GOOD = (
    "import json, sys; print('banner'); print(json.dumps({'version': '1.0', 'seen': sys.prefix}))"
)
HERE = PythonRange(sys.version_info[:2], (sys.version_info[0], sys.version_info[1] + 1))
NOWHERE = PythonRange((3, 1), (3, 2))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSE_EXPORT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no test of this file may reach a registry
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "home" / "runtimes"


@pytest.fixture
def runtime(tmp_path: Path) -> ManagedRuntime:
    (tmp_path / "empty.lock").write_text("# nothing to install\n")
    (tmp_path / "check.py").write_text(GOOD)
    return ManagedRuntime(
        name="toy",
        engine="Toy",
        version="1.0",
        python=HERE,
        lock=tmp_path / "empty.lock",
        check=tmp_path / "check.py",
        unfit=lambda: None,
        env={"TOY_QUIET": "1"},
    )


@pytest.mark.slow
def test_install_then_status_then_nothing_more_to_do(runtime: ManagedRuntime, home: Path) -> None:
    assert runtime.status().reason == "not installed: run `sparse-export targets install toy`"
    with pytest.raises(EngineUnfit) as caught:
        runtime.interpreter()
    assert caught.value.code == "engine-missing" and "targets install" in str(caught.value)
    steps: list[tuple[int, int]] = []
    status = runtime.install(lambda what, done, total: steps.append((done, total)))
    assert status.available and status.reason == "ready" and status.version == "1.0"
    assert status.python == ".".join(map(str, sys.version_info[:3]))
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert runtime.interpreter().is_relative_to(home)
    digest = hashlib.sha256(runtime.lock.read_bytes()).hexdigest()[:12]
    assert runtime.folder() == home / f"toy-{digest}"
    made = runtime.folder().stat().st_mtime_ns
    assert runtime.install() == status == runtime.status()
    assert runtime.folder().stat().st_mtime_ns == made
    assert sorted(p.name for p in home.iterdir()) == [".toy.lock", f"toy-{digest}"]


@pytest.mark.slow
def test_another_lock_is_another_environment(runtime: ManagedRuntime) -> None:
    runtime.install()
    runtime.lock.write_text("# another\n")
    assert not runtime.status().available


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("raise SystemExit('numpy 2.1.0 makes it compute wrongly')", "numpy 2.1.0"),
        ("import os; os.abort()", "status -6"),
        ("print('no json')", "said nothing"),
        ("", "said nothing"),
        ("print('{}')", "said nothing"),
        ('print(\'{"version": "0.9"}\')', "Toy 0.9"),
    ],
)
def test_a_check_that_fails(runtime: ManagedRuntime, tmp_path: Path, check: str, says: str) -> None:
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to(sys.executable)
    runtime.check.write_text(check)
    with pytest.raises(EngineUnfit) as caught:
        runtime._checked(tmp_path / "environment")
    assert caught.value.code == "install-failed" and says in caught.value.found


@pytest.mark.slow
def test_a_failed_check_leaves_nothing(runtime: ManagedRuntime, home: Path) -> None:
    runtime.check.write_text("raise SystemExit('wrong values')")
    with pytest.raises(EngineUnfit, match="wrong values"):
        runtime.install()
    assert [p.name for p in home.iterdir()] == [".toy.lock"]


@pytest.mark.slow
def test_a_failed_pip_leaves_nothing_and_tells_its_last_lines(
    runtime: ManagedRuntime, home: Path
) -> None:
    runtime.lock.write_text(f"no-such-package==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(EngineUnfit) as caught:
        runtime.install()
    assert caught.value.code == "install-failed" and "no-such-package" in caught.value.found
    assert [p.name for p in home.iterdir()] == [".toy.lock"]


def _wheel(folder: Path) -> Path:
    info = "toy_engine-1.0.dist-info"
    path = folder / "toy_engine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy_engine.py", "__version__ = '1.0'\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("hashed", ["right", "wrong", "not"])
def test_only_what_the_hashes_cover_is_installed(
    runtime: ManagedRuntime, tmp_path: Path, hashed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(_wheel(tmp_path).read_bytes()).hexdigest()
    option = {"right": f" --hash=sha256:{digest}", "wrong": f" --hash=sha256:{'0' * 64}", "not": ""}
    runtime.lock.write_text(f"toy-engine==1.0{option[hashed]}\n")
    runtime.check.write_text(f"import toy_engine\n{GOOD}\n")
    if hashed == "right":
        assert runtime.install().available
        return
    with pytest.raises(EngineUnfit, match="(?i)hash") as caught:
        runtime.install()
    assert caught.value.code == "install-failed"
    assert not runtime.status().available


@pytest.mark.slow
def test_what_a_killed_install_left_is_removed(runtime: ManagedRuntime, home: Path) -> None:
    stale = home / ".toy.partial-abc"
    stale.mkdir(parents=True)
    (stale / "half").touch()
    runtime.install()
    assert not stale.exists()


@pytest.mark.slow
def test_an_environment_whose_python_is_gone_is_made_anew(runtime: ManagedRuntime) -> None:
    runtime.install()
    python = runtime.folder() / "bin" / "python"
    python.unlink()
    assert "its Python is gone" in runtime.status().reason
    runtime.install()
    assert runtime.status().available and python.exists()


@pytest.mark.parametrize("stamp", ["", "[]", "{}", '{"version": "1.0"}'])
def test_a_damaged_stamp_counts_as_not_installed(runtime: ManagedRuntime, stamp: str) -> None:
    runtime.folder().mkdir(parents=True)
    (runtime.folder() / "stamp.json").write_text(stamp)
    assert runtime.status().reason.startswith("not installed")


def test_a_machine_that_can_never_run_it(runtime: ManagedRuntime, home: Path) -> None:
    hopeless = dataclasses.replace(runtime, unfit=lambda: "the CPU has no AVX2")
    assert hopeless.status().reason == "the CPU has no AVX2"
    for call in (hopeless.install, hopeless.interpreter):
        with pytest.raises(EngineUnfit) as caught:
            call()
        assert caught.value.code == "engine-unfit" and "no AVX2" in caught.value.found
    assert not home.exists()


def test_a_home_that_cannot_be_made(runtime: ManagedRuntime, home: Path) -> None:
    home.parent.write_text("a file where the folder should be")
    with pytest.raises(EngineUnfit) as caught:
        runtime.install()
    assert (caught.value.code, caught.value.file) == ("install-failed", str(home))


def test_no_python_in_range(runtime: ManagedRuntime, home: Path) -> None:
    old = dataclasses.replace(runtime, python=NOWHERE)
    assert old.status().reason == "no Python in >=3.1,<3.2 found"
    with pytest.raises(EngineUnfit, match=r"no Python in >=3.1,<3.2 found"):
        old.install()
    with pytest.raises(EngineUnfit, match="/no/such/python is no CPython"):
        runtime.install(python="/no/such/python")


def _install(runtime: ManagedRuntime) -> bool:
    return runtime.install().available


def _nothing() -> None:
    return None


@pytest.mark.slow
def test_two_processes_install_one(runtime: ManagedRuntime, tmp_path: Path) -> None:
    count = tmp_path / "checks"
    runtime.check.write_text(f"open({str(count)!r}, 'a').write('x')\n" + GOOD)
    picklable = dataclasses.replace(runtime, unfit=_nothing)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_install, [picklable, picklable]) == [True, True]
    assert count.read_text() == "x"


def test_environment_of_the_engine(
    runtime: ManagedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("KEPT", "yes")
    environment = runtime.environment()
    assert environment["TOY_QUIET"] == "1" and environment["KEPT"] == "yes"
    assert "PYTHONPATH" not in environment


def test_home_is_never_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSE_EXPORT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert runtimes_home() == Path("/x/cache/sparse-export/runtimes")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert runtimes_home() == Path.home() / ".cache/sparse-export/runtimes"


def _script(path: Path, output: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return str(path)


def test_which_python_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = PythonRange((3, 8), (3, 10))
    assert sys.version_info[:2] not in wanted
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    _script(tmp_path / "bin" / "python3.9", "pyenv: command not found")  # a shim that is off
    _script(tmp_path / "bin" / "python3.8", json.dumps(["pypy", [3, 8, 1]]))
    real = _script(
        tmp_path / "pyenv" / "versions" / "3.9.18" / "bin" / "python",
        json.dumps(["cpython", [3, 9, 18]]),
    )
    found = find_python(wanted)
    assert found is not None and found.path == real and found.version == "3.9.18"
    assert find_python(wanted, given=sys.executable) is None  # named, but out of range


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse4_2 avx", "none"),
        ("avx avx2 fma", "avx2"),
        ("avx2 avx512f avx512bw avx512dq avx512vl avx512cd", "avx512"),
        ("avx2 avx512f avx512bw avx512dq avx512vl avx512cd avx512_vnni", "avx512_vnni"),
        ("avx2 avx512f", "avx2"),
    ],
)
def test_isa_of_the_flags(flags: str, name: str, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert cpu.isa(cpu.cpu_flags(str(info))) == name
    assert cpu.cpu_flags(str(tmp_path / "absent")) == frozenset()


@pytest.mark.parametrize(
    ("platform", "machine", "says"),
    [
        ("darwin", "arm64", "this is darwin on arm64"),
        ("linux", "aarch64", "this is linux on aarch64"),
        ("linux", "x86_64", "no AVX2"),
    ],
)
def test_machines_that_do_not_fit(
    platform: str, machine: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("backends.cpu.cpu_flags", _no_flags)
    reason = cpu.linux_x86_avx2()
    assert reason is not None and says in reason


def _no_flags() -> frozenset[str]:
    return frozenset()


@pytest.mark.slow
def test_what_prepares_an_environment_runs_before_the_check_and_at_each_use(
    runtime: ManagedRuntime,
) -> None:
    seen: list[Path] = []

    def prepare(environment: Path) -> None:
        seen.append(environment)
        (environment / "prepared").write_text("yes")

    prepared = dataclasses.replace(runtime, prepare=prepare)
    runtime.check.write_text(
        f"import os, sys\nopen(os.path.join(sys.prefix, 'prepared')).close()\n{GOOD}\n"
    )
    prepared.install()
    assert len(seen) == 1 and seen[0].name.startswith(".toy.partial-")
    prepared.interpreter()
    assert seen[1:] == [prepared.folder()]


def test_an_environment_that_cannot_be_prepared(runtime: ManagedRuntime) -> None:
    def fails(environment: Path) -> None:
        raise PermissionError(13, "Permission denied", str(environment / "plugin"))

    (runtime.folder() / "bin").mkdir(parents=True)
    (runtime.folder() / "bin" / "python").symlink_to(sys.executable)
    (runtime.folder() / "stamp.json").write_text('{"version": "1.0", "python": "3"}')
    with pytest.raises(EngineUnfit, match="Permission denied") as caught:
        dataclasses.replace(runtime, prepare=fails).interpreter()
    assert caught.value.code == "install-failed" and caught.value.file == str(runtime.folder())


@pytest.mark.slow
def test_commands_of_an_environment_run_from_where_it_ends_up(runtime: ManagedRuntime) -> None:
    runtime.install()
    pip = runtime.folder() / "bin" / "pip"
    assert str(runtime.folder()) in pip.read_text().splitlines()[0] and ".partial-" not in (
        pip.read_text()
    )
    assert subprocess.run([str(pip), "--version"], capture_output=True, check=False).returncode == 0
