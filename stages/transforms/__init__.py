"""Builds variants of an ONNX graph, and describes graphs for optimisers and quantisers."""
