"""Makes variants of an ONNX graph: optimisers, quantisers, and what they need to know of the graph."""
