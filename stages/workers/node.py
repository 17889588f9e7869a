"""The properties of an ONNX node that its operator reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx


@dataclass(frozen=True)
class Node:
    """The properties of an ONNX node that its operator reads.

    Attributes:
        attributes: Attribute values by name; texts are str.
        opset: Opset version of the node's domain.
        outputs: Number of outputs that the graph uses.
    """

    attributes: dict[str, Any]
    opset: int
    outputs: int

    @classmethod
    def of(cls, node: onnx.NodeProto, opset: int) -> Node:
        """Read a node.

        Args:
            node: The node.
            opset: Opset version of its domain.

        Raises:
            NotImplementedError: An attribute refers to an attribute of a function, whose value is unknown here.
        """
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise NotImplementedError("a reference to an attribute of a function")
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        texts = {name: value.decode() for name, value in values.items() if isinstance(value, bytes)}
        return cls({**values, **texts}, opset, sum(bool(name) for name in node.output))

    def get(self, name: str, default: Any) -> Any:
        """The value of an attribute, or `default` if the node does not have it."""
        return self.attributes.get(name, default)
