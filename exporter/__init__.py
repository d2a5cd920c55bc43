"""The compiler: from a sparse checkpoint and its adapters to a verified artefact."""

__version__ = "0.1.0"
