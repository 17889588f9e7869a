"""Lists the nodes of a graph, and finds the PyTorch module that each comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

# The attribute in which Onward's wrapper for exporters keeps the original module (stages/workers/signature.py).
WRAPPED = "original_module"


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Iterate over all nodes, including those of subgraphs and functions."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def origin(node: onnx.NodeProto) -> tuple[str, str]:
    """Find the PyTorch module and the source line that a node comes from.

    Args:
        node: A node with the metadata that PyTorch's exporter writes.

    Returns:
        The path of the module, and `file:line` in the repository. Each is empty if the metadata lacks it.
    """
    about = {entry.key: entry.value for entry in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", about.get("pkg.torch.onnx.name_scopes", ""))
    module = scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_empty") else ""
    module = module.removeprefix(WRAPPED).removeprefix(".")
    frames = re.findall(r'File "([^"]+)", line (\d+)', about.get("pkg.torch.onnx.stack_trace", ""))
    frames = [frame for frame in frames if not frame[0].startswith("<")]
    ours = [frame for frame in frames if not frame[0].startswith("torch/")] or frames
    return module, ":".join(ours[-1]) if ours else ""
