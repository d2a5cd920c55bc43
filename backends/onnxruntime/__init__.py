"""Target `onnxruntime`: the decoder graph for optimum's users, and a session that runs either
interface of the graph."""
