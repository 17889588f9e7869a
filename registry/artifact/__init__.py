"""The folder of a version: its ONNX file, its manifest, how it is served, and the replay of its recorded answers."""
