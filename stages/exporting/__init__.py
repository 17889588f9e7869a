"""PyTorch to ONNX: the exporters, and diagnosis of their failures."""
