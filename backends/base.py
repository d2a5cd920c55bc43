"""The contract of a backend, re-exported where backends look for it."""

from exporter.contract import (
    Diagnostic,
    Facts,
    Generation,
    LowerPlan,
    PlannedFile,
    Progress,
    RuntimeStatus,
    RuntimeWindow,
    Session,
    StoredTensor,
    Target,
    Tolerance,
)

__all__ = [
    "Diagnostic",
    "Facts",
    "Generation",
    "LowerPlan",
    "PlannedFile",
    "Progress",
    "RuntimeStatus",
    "RuntimeWindow",
    "Session",
    "StoredTensor",
    "Target",
    "Tolerance",
]
