"""Small edits of ONNX graphs that take subgraphs (the bodies of If, Loop and Scan) into account."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy.typing as npt
import onnx
from onnx import AttributeProto, numpy_helper


def captured(graph: onnx.GraphProto) -> set[str]:
    """Names of the values that subgraphs of a graph's nodes read from outside."""
    found: set[str] = set()
    for node in graph.node:
        for inner in subgraphs(node):
            own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            own |= {name for other in inner.node for name in other.output}
            read = {name for other in inner.node for name in other.input if name}
            read |= {value.name for value in inner.output} | captured(inner)
            found |= read - own
    return found


def sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sort a graph's nodes so that each follows those that it and its subgraphs read.

    ONNX Runtime's quantisers sort by the nodes' inputs alone and may place an If before a value that its body reads.

    Args:
        graph: The graph, which is changed.

    Returns:
        Whether the order has changed.
    """
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(graph.node)):
        waiting = [start]
        while waiting:
            index = waiting[-1]
            node = graph.node[index]
            inner = captured(onnx.GraphProto(node=[node])) if any(subgraphs(node)) else set()
            missing = [made[name] for name in (*node.input, *sorted(inner)) if name in made and made[name] not in done]
            missing = [other for other in missing if other != index and other not in waiting]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if index not in done:
                done.add(index)
                order.append(index)
    if order == list(range(len(order))):
        return False
    ordered = [onnx.NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(ordered)
    return True


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def readers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value, by the value's name; a node that reads it twice is there twice."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph; the new ones may include old ones."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove initializers that nothing reads."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    read |= captured(graph)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the nodes and initializers that no output depends on. The nodes must be in order."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for name in node.input if name} | captured(onnx.GraphProto(node=[node]))
    if len(kept) < len(graph.node):
        set_nodes(graph, kept[::-1])
    drop_unused(graph)


def value_names(graph: onnx.GraphProto) -> set[str]:
    """Names of all values of a graph."""
    found = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return found | {name for node in graph.node for name in node.output if name}


def store(graph: onnx.GraphProto, values: npt.NDArray[Any], like: str, names: set[str]) -> str:
    """Add an initializer with a new name."""
    name = unused_name(f"{like}.copy", names)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def unused_name(wish: str, names: set[str]) -> str:
    """A name that no value has yet; it is added to `names`."""
    name, number = wish, 1
    while name in names:
        number += 1
        name = f"{wish}{number}"
    names.add(name)
    return name
