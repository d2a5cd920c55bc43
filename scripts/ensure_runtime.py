"""Make managed engine environments; on a machine that cannot run one, say why and go on."""

from __future__ import annotations

import sys

from rich.console import Console

from exporter.errors import SparseExportError
from exporter.registry import load_runtime


def main(name: str) -> int:
    """Install the runtime `name`; 0 also where this machine can never run it, with the reason."""
    console = Console(stderr=True)
    try:
        status = load_runtime(name).install(
            lambda what, done, total: console.print(f"{name}: {what}", markup=False)
        )
    except SparseExportError as error:
        if error.code == "engine-unfit":
            console.print(f"{name}: not on this machine. {error.found}", markup=False)
            return 0
        console.print(f"error {error}", markup=False)
        return error.exit_code
    console.print(f"{name} {status.version}: {status.reason}", markup=False)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: ensure_runtime.py NAME...")
    sys.exit(max(main(name) for name in sys.argv[1:]))
