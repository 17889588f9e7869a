"""The lines of params.yaml that are proposed for sizes: multiples of a number, and sizes that follow from others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.evidence.size_expressions import value
from onward.stages.config.schema import Dim
from onward.stages.parity.size_hints import expression, multiples
from tests.test_field_cases import case, reasons

__all__ = ["case"]
DIMS = {"height": Dim(min=10, max=66, typical=[32]), "width": Dim(min=1, max=40, typical=[24])}


@given(st.integers(2, 9), st.integers(1, 4))
def test_a_factor_is_found_for_each_dimension(tall: int, wide: int) -> None:
    dims = {"height": DIMS["height"].model_copy(update={"typical": [4 * tall * wide]}), "width": DIMS["width"]}
    dims["width"] = dims["width"].model_copy(update={"typical": [wide * 2]})
    found = multiples(lambda sizes: sizes["height"] % tall == 0 and sizes["width"] % wide == 0, dims)
    assert any("height: {" in line and f"multiple_of: {tall}}}" in line for line in found)
    assert any("width" in line for line in found) == (wide > 1)


def test_nothing_is_proposed_where_all_or_unrelated_sizes_are_refused() -> None:
    assert multiples(lambda sizes: True, DIMS) == []
    assert multiples(lambda sizes: False, DIMS) == []
    assert multiples(lambda sizes: sizes["height"] in (11, 32, 37), DIMS) == []


@pytest.mark.parametrize(
    "text", ["height", "height // 4", "(height + 3) // 4", "2 * width", "height + width", "width - 1"]
)
def test_an_expression_is_found(text: str) -> None:
    sizes = [{"height": h, "width": w} for h, w in ((16, 24), (17, 31), (40, 8), (33, 9))]
    observed = [(one, value(text, one) or 0) for one in sizes]
    found = expression(observed)
    assert [value(found, one) for one in sizes] == [size for _, size in observed]


def test_no_expression_is_proposed_from_few_or_unrelated_sizes() -> None:
    assert expression([({"a": 1}, 1), ({"a": 2}, 2)]) == ""
    assert expression([({"a": 1}, 7), ({"a": 2}, 3), ({"a": 3}, 11), ({"a": 4}, 2)]) == ""


def test_a_module_that_refuses_declared_sizes_gets_the_line_to_write(case: Callable[..., dict[str, Any]]) -> None:
    words = reasons(case("c13", "c13", "train", "data", "export"))
    assert "dims: {height: {min: 16, max: 64, typical: [32], multiple_of: 4}}" in words
    assert "dims: {width: {min: 16, max: 64, typical: [24], multiple_of: 4}}" in words


def test_a_wrong_output_shape_gets_the_shape_to_write(case: Callable[..., dict[str, Any]]) -> None:
    sides = {"min": 16, "max": 64, "typical": [32]}
    outputs = {"features": {"shape": ["batch", 4, "height", "width"]}}
    dims = {"batch": {"max": 4, "typical": [1]}, "height": sides, "width": sides}
    words = reasons(case("c13b", "c13b", "train", "data", "export", "verify", outputs=outputs, dims=dims))
    assert "outputs: {features: {shape: [batch, 4, (height + 3) // 4, (width + 3) // 4]}}" in words
