"""decoder_graph."""
