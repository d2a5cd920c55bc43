"""The packed layout, version 1: sparse weights in tiles. See docs/formats/packed.md."""
