"""Layer rates: how important each decoder block is, and how sparse it is to be."""
