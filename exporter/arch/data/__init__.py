"""One JSON file a decoder family; see `exporter.arch.family.Family` for the fields."""
