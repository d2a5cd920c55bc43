"""Real models for demo, tests and benchmarks, made from what the package index holds."""
