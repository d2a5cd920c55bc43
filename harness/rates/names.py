"""Names of importances, apart from their code: the command line's help needs no torch."""

from __future__ import annotations

IMPORTANCES = ("rmi", "angular", "owl", "gradient")
UNIFORM = "uniform"
