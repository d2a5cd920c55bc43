"""sparse-bench: whether a sparse artefact is faster than its dense twin, on this machine."""
