"""Nodes of a graph, and where in the PyTorch module each came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import onnx

# Where a wrapper of ours keeps the module that it wraps for an exporter (stages/workers/signature.py).
WRAPPED = "original_module"


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions included."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def origin(node: onnx.NodeProto) -> tuple[str, str]:
    """(path of the PyTorch module, `file:line` in the repository) that a node came from; empty where unsaid."""
    about = {entry.key: entry.value for entry in node.metadata_props}
    scopes = re.findall(r"'([^']*)'", about.get("pkg.torch.onnx.name_scopes", ""))
    module = scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_empty") else ""
    module = module.removeprefix(WRAPPED).removeprefix(".")
    frames = re.findall(r'File "([^"]+)", line (\d+)', about.get("pkg.torch.onnx.stack_trace", ""))
    frames = [frame for frame in frames if not frame[0].startswith("<")]
    ours = [frame for frame in frames if not frame[0].startswith("torch/")] or frames
    return module, ":".join(ours[-1]) if ours else ""
