"""One optimiser a file, all of one shape: `optimize(source, target, options)` reads an ONNX file and writes another.

It computes the same from fewer or cheaper nodes, or raises `onward.stages.transforms.builder.NotApplicable` with the
reason in words. `OPTIONS` are its options, each with its values, the default first; `skip_reason(graph, options,
runtimes)`, where a file has it, says why a graph of these traits (stages/transforms/graph_profile.py) has nothing to
gain on these runtimes, or nothing. None is trusted: the optimize stage checks every result.
docs/adding-an-optimizer.md shows how to add one.
"""

# Why simplifying cannot help a graph that its exporter has folded: what else simplifiers remove, a session removes too.
FOLDED = "PyTorch's exporter has folded all there is: no node follows from weights alone"
