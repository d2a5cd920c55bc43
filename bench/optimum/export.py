"""Program: export.py MODEL OUT, what `optimum-cli export onnx` does, without its validation.

optimum-cli has no flag for that, so this calls the function under it with the arguments of
optimum/commands/export/onnx.py and `do_validation=False`. Runs in the peer's environment.
"""
# pyright: basic, reportMissingImports=false

import sys

from optimum.exporters.onnx import main_export

if __name__ == "__main__":
    main_export(
        sys.argv[1],
        sys.argv[2],
        task="text-generation-with-past",
        do_validation=False,
        use_subprocess=True,
    )
