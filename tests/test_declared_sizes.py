"""Sizes that params.yaml can express: multiples, sizes that follow from others, sizes that depend on the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.test_field_cases import case, reasons

__all__ = ["case"]
Go = Callable[..., dict[str, Any]]
SIDES = {"min": 16, "max": 64, "typical": [32], "multiple_of": 4}


def test_a_unet_takes_sides_that_are_multiples_of_4(case: Go) -> None:
    dims = {"batch": {"min": 1, "max": 4, "typical": [1]}, "height": SIDES, "width": SIDES | {"typical": [24]}}
    reports = case("c13", "c13", dims=dims)
    assert reasons(reports) == ""
    sizes = [result.sizes for result in reports["verify"].cases]
    assert all(size["height"] % 4 == 0 for size in sizes)
    assert len({size["height"] for size in sizes}) > 3


def test_an_output_has_a_quarter_of_the_height_of_an_input(case: Go) -> None:
    dims = {
        "batch": {"min": 1, "max": 4, "typical": [1]},
        "height": SIDES,
        "width": SIDES | {"typical": [24]},
        "rows": "height / 4",
        "columns": {"size": "width / 4"},
    }
    assert reasons(case("c13b", "c13b", dims=dims)) == ""


def test_an_output_size_that_no_input_has_is_checked_against_its_limits(case: Go) -> None:
    """The entry as it was filed has limits for rows and columns; with smaller ones, the case is named."""
    assert reasons(case("c13b", "c13b")) == ""
    dims = {
        "batch": {"min": 1, "max": 4, "typical": [1]},
        "height": SIDES,
        "width": SIDES | {"typical": [24]},
        "rows": {"max": 8},
        "columns": {"max": 16},
    }
    assert "rows from 1 to 8" in reasons(case("c13b", "c13b", dims=dims))


def test_a_mask_is_as_long_as_the_past_and_the_new_tokens(case: Go) -> None:
    dims = {
        "batch": {"min": 1, "max": 4, "typical": [1]},
        "new": {"min": 1, "max": 8, "typical": [3]},
        "past": {"min": 0, "max": 16, "typical": [5]},
        "total": "past + new",
    }
    reports = case("c22", "c22", dims=dims)
    assert reasons(reports) == ""
    assert any(result.sizes["past"] == 0 for result in reports["verify"].cases)


@pytest.mark.parametrize("model", ["c12", "c12b"])
def test_samples_are_counted_on_another_axis(case: Go, model: str) -> None:
    inputs = {"x": {"shape": ["time", "batch", 16], "sample_axis": 1}}
    changes: dict[str, Any] = {"data": {"min_samples": 50}}
    assert reasons(case("c12", model, inputs=inputs, **changes)) == ""
