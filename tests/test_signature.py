"""Inputs are matched to parameters by name and outputs by key; mismatches are rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from onward.stages.workers.signature import Mismatch, bind, exportable, name_outputs

ONE, TWO = torch.ones(2, 3), torch.full((2, 3), 2.0)


def module(forward: Any) -> nn.Module:
    made: nn.Module = type("Net", (nn.Module,), {"forward": forward})()
    return made


def call(forward: Any, *inputs: str) -> Any:
    net = module(forward)
    positional, keywords = bind(net, inputs).arguments({name: name for name in inputs})
    return net(*positional, **keywords)


def test_inputs_are_matched_to_parameters_by_name_in_any_order() -> None:
    assert call(lambda self, ids, types, mask: (ids, types, mask), "ids", "mask", "types") == ("ids", "types", "mask")


def test_optional_and_keyword_only_parameters_that_are_not_inputs_keep_their_defaults() -> None:
    assert call(lambda self, image, box=None, *, points=None: (image, box, points), "image", "points") == (
        "image", None, "points",
    )  # fmt: skip
    assert call(lambda self, image, box=None, points=None: (image, box, points), "points", "image") == (
        "image", None, "points",
    )  # fmt: skip


def test_a_single_tensor_is_passed_to_a_single_parameter_of_any_name() -> None:
    assert bind(nn.Sequential(nn.Linear(2, 2)), ["x"]).positional == ("x",)
    assert bind(module(lambda self, *tensors: tensors), ["x", "y"]).positional == ("x", "y")
    assert bind(torch.jit.script(nn.Sequential(nn.Linear(2, 2))), ["x"]).positional == ("x",)


def test_inputs_for_variadic_keywords_are_passed_by_name() -> None:
    assert call(lambda self, x, **rest: (x, rest), "x", "y") == ("x", {"y": "y"})


@pytest.mark.parametrize(
    ("forward", "inputs", "words"),
    [
        (lambda self, a, b: a, ["x", "y"], r"forward\(a, b\) does not take the inputs x, y: it has no parameter 'x'"),
        (lambda self, a, b: a, ["a"], "no input is called 'b'"),
        (lambda self, a, b=None: a, ["a", "c"], "it has no parameter 'c'"),
        (lambda self, a=None, b=None: a, ["x"], "it has no parameter 'x'"),
    ],
)
def test_an_unmatched_name_is_rejected_with_the_signature(forward: Any, inputs: list[str], words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        bind(module(forward), inputs)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Heads:
    scores: Tensor
    boxes: list[Tensor]
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("results", "declared"),
    [
        ({"one": ONE, "two": TWO}, ["two", "one"]),
        (Pair(left=TWO, right=ONE), ["right", "left"]),
        (Heads(scores=ONE, boxes=[TWO, ONE]), ["boxes_0", "scores", "boxes_1"]),
        ((ONE, {"two": TWO}), ["two", "first"]),
        ({"deep": {"one": ONE}, "two": TWO}, ["two", "deep_one"]),
        ((ONE, [TWO]), ["first", "second"]),
    ],
)
def test_outputs_are_matched_by_key_or_by_position_without_keys(results: Any, declared: list[str]) -> None:
    found = name_outputs(results, declared).outputs
    assert list(found) == declared
    for name, value in found.items():
        wanted = TWO if name in ("two", "left", "boxes_0", "second") else ONE
        assert torch.equal(value, wanted), name


def test_outputs_that_are_none_are_omitted_and_reported() -> None:
    assert name_outputs(Heads(scores=ONE, boxes=[TWO]), ["scores", "boxes_0"]).dropped == ["loss"]


@pytest.mark.parametrize(
    ("results", "declared", "words"),
    [
        ({"mood": ONE, "topic": TWO}, ["mood"], r"returns the outputs mood \[2, 3\], topic \[2, 3\]; params.yaml decl"),
        ({"mood": ONE}, ["y"], "params.yaml declares y"),
        ((ONE, TWO), ["y"], "returns 2 outputs, params.yaml declares 1"),
        ({"a": {"b": ONE}, "a_b": TWO}, ["a_b", "c"], "two outputs with the name 'a_b'"),
        ((ONE, 3), ["y", "z"], "returns int for its output 1: only tensors"),
    ],
)
def test_undeclared_outputs_are_rejected(results: Any, declared: list[str], words: str) -> None:
    with pytest.raises(Mismatch, match=words):
        name_outputs(results, declared)


def test_a_module_is_exported_unwrapped_unless_keys_or_keywords_require_a_wrapper() -> None:
    plain = module(lambda self, a, b: (a, b))
    made, order = exportable(plain, ["b", "a"], ["one", "two"], {"a": ONE, "b": TWO})
    assert made is plain
    assert order == ["a", "b"]
    keyed = module(lambda self, a, *, b: {"two": b, "one": a})
    made, order = exportable(keyed, ["a", "b"], ["one", "two"], {"a": ONE, "b": TWO})
    assert order == ["a", "b"]
    one, two = made(ONE, TWO)
    assert torch.equal(one, ONE)
    assert torch.equal(two, TWO)
