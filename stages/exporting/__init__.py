"""From PyTorch to ONNX: the exporters, and what goes wrong in them."""
