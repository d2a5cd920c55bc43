"""Target `deepsparse`: its own environment, its graph, its session."""
