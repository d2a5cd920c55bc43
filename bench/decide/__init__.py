"""From samples to a decision: ratios with intervals, rank tests, percentiles, verdicts."""
