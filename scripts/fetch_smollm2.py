"""Make the SmolLM2-135M-Instruct folder that demo, tests and benchmarks use; prints its path."""

from __future__ import annotations

import sys

from exporter.errors import SparseExportError
from harness.models.smollm2 import fetch_smollm2


def main() -> int:
    """0 with the folder's path on standard output, else the error's exit code."""
    try:
        folder = fetch_smollm2(say=lambda text: print(text, file=sys.stderr, flush=True))
    except SparseExportError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit_code
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
