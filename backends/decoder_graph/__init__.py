"""A decoder as an ONNX graph, built by hand from its spec; shared by the ONNX targets."""
