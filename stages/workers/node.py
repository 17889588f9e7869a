"""What an operator needs to know of its node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx


@dataclass(frozen=True)
class Node:
    """What an operator needs to know of its node: attributes, opset of its domain, and how many outputs it gives."""

    attributes: dict[str, Any]
    opset: int
    outputs: int

    @classmethod
    def of(cls, node: onnx.NodeProto, opset: int) -> Node:
        """Read a node.

        Raises:
            NotImplementedError: an attribute refers to one of a function, whose value the node does not know.
        """
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise NotImplementedError("an attribute of a function")
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        texts = {name: value.decode() for name, value in values.items() if isinstance(value, bytes)}
        return cls({**values, **texts}, opset, sum(bool(name) for name in node.output))

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)
