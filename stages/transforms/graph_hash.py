"""What ONNX Runtime makes of a graph, as a digest that neither names nor order change.

A session rewrites its graph before it runs it. Two files of which it makes the same graph take the same time and
compute the same: one of them is worth measuring.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import onnx

from onward.stages.workers.onnx_worker import OnnxModel

# Beyond this, writing the rewritten graph takes longer than measuring one variant more.
LARGEST = 1_000_000_000


def fingerprint(path: Path) -> str:
    """Digest of the graph that a session at level "extended" runs; empty where the file is too large to be rewritten.

    What level "all" adds are memory layouts, which follow from that graph and the CPU. To be called in a process of its
    own: it creates a session.
    """
    if path.stat().st_size > LARGEST or list(path.parent.glob(f"{path.name}.data")):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "rewritten.onnx"
        OnnxModel().optimize(str(path), str(rewritten), "extended")
        return structure(onnx.load(rewritten))


def structure(model: onnx.ModelProto) -> str:
    """Digest of a model's outputs, each by the operator, attributes and inputs that it is computed with, weights by
    their content. The names of inputs and outputs count, those of values in between do not."""
    return _outputs(model.graph, {}).hexdigest()


def _outputs(graph: onnx.GraphProto, outer: dict[str, bytes]) -> hashlib._Hash:
    values = dict(outer)
    for value in graph.input:
        values[value.name] = _digest(b"input", value.name.encode())
    for tensor in graph.initializer:
        content = onnx.TensorProto()
        content.CopyFrom(tensor)
        content.ClearField("name")
        content.ClearField("doc_string")
        values[tensor.name] = _digest(b"weight", content.SerializeToString(deterministic=True))
    for node in graph.node:  # ONNX has them in topological order
        parts = [node.domain.encode(), node.op_type.encode(), *(values.get(name, b"") for name in node.input)]
        parts += [_attribute(attribute, values) for attribute in sorted(node.attribute, key=lambda a: a.name)]
        for index, name in enumerate(node.output):
            values[name] = _digest(b"value", str(index).encode(), *parts)
    found = hashlib.sha256()
    for value in graph.output:
        found.update(value.name.encode() + values.get(value.name, b""))
    return found


def _attribute(attribute: onnx.AttributeProto, values: dict[str, bytes]) -> bytes:
    if attribute.HasField("g"):
        return _digest(attribute.name.encode(), _outputs(attribute.g, values).digest())
    content: bytes = attribute.SerializeToString(deterministic=True)
    return content


def _digest(*parts: bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()
