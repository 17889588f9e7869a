"""Digest of the graph that ONNX Runtime rewrites a file to, independent of names and node order.

A session rewrites its graph before it runs it. Two files with the same rewritten graph take the same time and compute
the same values, so only one of them is worth measuring.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import onnx

from onward.stages.workers.circumstances import CURRENT
from onward.stages.workers.onnx_worker import OnnxModel

# Bytes. For larger files, writing the rewritten graph takes longer than measuring one more variant.
LARGEST = 1_000_000_000


def fingerprint(path: Path) -> str:
    """Compute the digest of the graph that a session at level "extended" runs.

    Level "all" only adds memory layouts, which follow from that graph and the CPU. Call it in a separate process: it
    creates a session.

    Returns:
        The SHA-256 digest in hexadecimal; empty if the file is larger than LARGEST or has external data.
    """
    if path.stat().st_size > LARGEST or list(path.parent.glob(f"{path.name}.data")):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "rewritten.onnx"
        libraries = [str(library) for library in CURRENT.libraries]
        OnnxModel().optimize(str(path), str(rewritten), "extended", libraries)
        return structure(onnx.load(rewritten))


def structure(model: onnx.ModelProto) -> str:
    """Compute a digest of how a model computes its outputs.

    It covers operators, attributes, the content of weights, and the names of the graph's inputs and outputs, but not
    the names of inner values.

    Returns:
        The SHA-256 digest in hexadecimal.
    """
    return _outputs(model.graph, {}).hexdigest()


def _outputs(graph: onnx.GraphProto, outer: dict[str, bytes]) -> hashlib._Hash:
    """Digest of a graph's outputs; `outer` holds the digests of the values around a subgraph, by name."""
    values = dict(outer)
    for value in graph.input:
        values[value.name] = _digest(b"input", value.name.encode())
    for tensor in graph.initializer:
        content = onnx.TensorProto()
        content.CopyFrom(tensor)
        content.ClearField("name")
        content.ClearField("doc_string")
        values[tensor.name] = _digest(b"weight", content.SerializeToString(deterministic=True))
    for node in graph.node:  # ONNX requires topological order
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
