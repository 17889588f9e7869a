"""What this machine is, and which ONNX Runtime builds it can run."""
