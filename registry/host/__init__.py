"""Describes this machine and the ONNX Runtime builds that it can run."""
