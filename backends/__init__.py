"""The engines: one folder a target, and what they share."""
