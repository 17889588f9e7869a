"""What a version's folder is: its ONNX file, its manifest, how it is served, and whether it repeats its answers."""
