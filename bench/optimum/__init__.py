"""optimum-onnx 0.1.0 in an environment of its own, as a peer to measure beside."""
