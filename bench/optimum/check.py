"""Program of the environment's check: imports what an export needs; the version as JSON.

Runs in the peer's environment, never in ours.
"""
# pyright: basic, reportMissingImports=false

import json
from importlib.metadata import version

import torch
from optimum.exporters.onnx import main_export

if not callable(main_export) or float(torch.ones(3) @ torch.ones(3)) != 3.0:
    raise SystemExit("optimum or torch does not work here")
print(json.dumps({"version": version("optimum-onnx")}))
