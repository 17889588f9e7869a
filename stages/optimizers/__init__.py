"""One optimiser a file, all of one shape: `optimize(source, target)` reads an ONNX file and writes another.

It computes the same from fewer or cheaper nodes, or raises `stages.variants.NotApplicable` with the reason in words.
None is trusted: the optimize stage checks every result. docs/adding-an-optimizer.md shows how to add one.
"""
