"""Modules and inputs of other types than float32: supported, or refused with the reason and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onward.registry.errors import UsageError
from onward.stages.config.load import read
from tests.test_field_cases import case, reasons

__all__ = ["case"]
Go = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("model", ["half", "double", "half_inside", "mixed"])
def test_a_module_of_other_types_passes(case: Go, model: str) -> None:
    assert reasons(case("types", model)) == ""


def test_a_module_in_bfloat16_is_refused_with_the_remedy(case: Go) -> None:
    words = reasons(case("types", "brain_inside"))
    assert "ONNX Runtime has no kernel" in words
    assert "return module.float() from build()" in words


@pytest.mark.parametrize(("dtype", "remedy"), [("bfloat16", "declare float32"), ("string", "before the model")])
def test_an_input_of_an_unsupported_type_is_refused_with_the_remedy(tmp_path: Path, dtype: str, remedy: str) -> None:
    (tmp_path / "params.yaml").write_text(
        "models: {m: {build: 'a:b', samples: 'a:c', dims: {batch: {max: 2, typical: [1]}}, "
        f"inputs: {{x: {{dtype: {dtype}, shape: [batch]}}}}, outputs: {{y: {{shape: [batch]}}}}}}}}"
    )
    with pytest.raises(UsageError, match=f"models.m.inputs.x.dtype: .*{remedy}"):
        read(tmp_path / "params.yaml")
