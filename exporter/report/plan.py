"""`--plan`: what an export would do, from headers alone. Reads no weight and writes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from exporter import registry
from exporter.contract import Diagnostic, LowerPlan, RuntimeStatus
from exporter.planning import header_model
from exporter.quantise.stage import wanted
from exporter.request import ExportRequest
from exporter.store.sink import free_bytes

SCHEMA = 1


def plan_report(request: ExportRequest) -> dict[str, Any]:
    """Files, bytes, memory and disk, the action per tensor, and the verdict on the engine here.

    Raises:
        InputRefused: a fault that headers show.
        UsageError: `unknown-target`, `target-option`, `calibration-needed`.
    """
    target = registry.load_target(request.target, request.target_options)
    wanted(target, request.calibration is not None)  # refuses what an export would
    model = header_model(request)
    plan = target.plan(model)
    free = free_bytes(request.output)
    total = sum(f.nbytes for f in plan.files)
    return {
        "schema": SCHEMA,
        "target": request.target,
        "runtime": _runtime(target.runtime()),
        "files": {f.name: f.nbytes for f in plan.files},
        "total_bytes": total,
        "peak_bytes": plan.peak_bytes,
        "disk_free_bytes": free,
        "fits_on_disk": free is None or total <= free,
        "tensors": _tensors(model.tensors, plan),
        "diagnostics": [_diagnostic(d) for d in target.inspect(model)],
    }


def _tensors(tensors: Any, plan: LowerPlan) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "changed": tensor.changed,
            "action": plan.actions.get(name, "copied"),
        }
        for name, tensor in tensors.items()
    ]


def _runtime(status: RuntimeStatus) -> dict[str, Any]:
    return {"available": status.available, "reason": status.reason, "version": status.version}


def _diagnostic(item: Diagnostic) -> dict[str, str]:
    return {"level": item.level, "message": item.message, "where": item.where}


def render_plan(report: dict[str, Any], console: Console) -> None:
    """The plan for people."""
    files = Table("file", "MB", title=f"plan for {report['target']}")
    for name, nbytes in report["files"].items():
        files.add_row(name, f"{nbytes / 1e6:.2f}")
    console.print(files)
    changed = sum(t["changed"] for t in report["tensors"])
    console.print(f"{len(report['tensors'])} tensors, {changed} of them changed by adapters")
    console.print(f"memory: about {report['peak_bytes'] / 1e6:.0f} MB above the interpreter's own")
    fits = "fits" if report["fits_on_disk"] else "DOES NOT FIT"
    free = report["disk_free_bytes"]
    room = "free space unknown" if free is None else f"{fits} ({free / 1e6:.0f} MB free)"
    console.print(f"disk: {report['total_bytes'] / 1e6:.0f} MB needed, {room}")
    runtime = report["runtime"]
    console.print(
        f"engine here: {'can' if runtime['available'] else 'cannot'} run it ({runtime['reason']})",
        markup=False,
    )
    for item in report["diagnostics"]:
        console.print(f"{item['level']}: {item['message']}", markup=False)
