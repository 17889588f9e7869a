"""Optimisers, one module each; all have the same interface.

`optimize(source, target, options)` reads an ONNX file and writes another, which computes the same with fewer or cheaper
nodes. It raises `onward.stages.transforms.builder.NotApplicable` with the reason if it cannot.

Optional in a module:
`OPTIONS`: its options, each with its allowed values, the default first.
`skip_reason(graph, options, runtimes)`: why a graph with this profile (stages/transforms/graph_profile.py) cannot gain
on these runtimes; empty if it may.

The optimize stage checks every result. docs/adding-an-optimizer.md shows how to add an optimiser.
"""

# Why simplifiers cannot help a graph that its exporter has folded: sessions remove everything else that they remove.
FOLDED = "PyTorch's exporter has already folded all constants: no node depends on weights alone"
