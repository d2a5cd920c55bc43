"""An engine of known speed, by which a benchmark's own errors can be measured."""
