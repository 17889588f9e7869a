"""Sizes in shapes that follow from other sizes, before and after params.yaml is validated."""

from __future__ import annotations

from typing import Any

from onward.registry.evidence import size_expressions


def names_in(axis: int | str) -> list[str]:
    """The dimensions in one axis of a shape."""
    return size_expressions.names(axis) if isinstance(axis, str) else []


def expanded(model: dict[str, Any]) -> dict[str, Any]:
    """The raw settings of a model with the expressions of `dims` written out in all shapes.

    Raises:
        ValueError: A dimension is defined by itself.
    """
    dims = model.get("dims")
    sizes = {k: v.get("size") if isinstance(v, dict) else v for k, v in dims.items()} if isinstance(dims, dict) else {}
    derived = {name: size for name, size in sizes.items() if isinstance(size, str)}
    try:
        for name in derived:
            size_expressions.replace(name, derived)
    except ValueError as error:
        raise ValueError(f"dims: {error}") from None
    if not derived:
        return model

    def axis(size: Any) -> Any:
        try:
            return size_expressions.replace(size, derived) if isinstance(size, str) else size
        except ValueError:
            return size  # the shape's own check explains this

    found = dict(model)
    for group in ("inputs", "outputs"):
        if isinstance(found.get(group), dict):
            found[group] = {
                name: {**spec, "shape": [axis(size) for size in spec["shape"]]}
                if isinstance(spec, dict) and isinstance(spec.get("shape"), list)
                else spec
                for name, spec in found[group].items()
            }
    return found
