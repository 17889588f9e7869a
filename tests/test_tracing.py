"""Values and varying sizes that a tracer bakes into a graph are distinguished from weights and fixed sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onward.stages.exporting import tracing

# (batch, time) of three traces: the first one is exported.
SIZES = [(2, 5), (1, 1), (4, 24)]


@torch.jit.script_if_tracing  # type: ignore[untyped-decorator]
def scripted(x: Tensor) -> Tensor:
    if bool(x.sum() > 0):
        return x * torch.tensor(2.0)
    return x


SHAPED: dict[str, Callable[[Tensor], Any]] = {
    "a root of a fixed size": lambda x: x / math.sqrt(x.size(-1)),
    "a branch on a fixed size": lambda x: x if x.shape[2] % 4 == 0 else nn.functional.pad(x, (0, 2)),
    "an assertion about sizes that holds": lambda x: x * 2 if x.shape[0] >= 1 else 1 / 0,
    "a flag of a size that changes no operator": lambda x: x + float(x.shape[1] > 1 and x.shape[2] > 9),
    "a loop over a fixed axis": lambda x: torch.stack([part * 2 for part in x.permute(2, 0, 1)], dim=-1),
    "sizes that stay tensors": lambda x: x.reshape(x.shape[0] * x.shape[1], x.shape[2]),
    "a constant made of numbers": lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    "a branch that is scripted": scripted,
    "a length of a fixed axis": lambda x: x * len(x[0, 0]),
}
BAKED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a branch": (lambda x: x * 2 if x.sum() > 0 else x, "a Python boolean of an input's values"),
    "a branch on a rare value": (lambda x: x * 2 if bool((x == 7).any()) else x, "a Python boolean of an input's"),
    "any() over values": (lambda x: x * 2 if any(v > 9 for v in x.sum((1, 2))) else x, "of an input's values"),
    "a number": (lambda x: x / float(x.max()), "a Python float of an input's values"),
    "item": (lambda x: x / x.max().item(), "a Python number of an input's values"),
    "a list": (lambda x: x + sum(x[0, 0].tolist()), "a Python list of an input's values"),
    "an array": (lambda x: x + torch.from_numpy(np.array(x.mean().numpy())), "a NumPy array of an input's values"),
    "how many are positive": (lambda x: x * int(x[x > 0].shape[0]), "a Python integer of an input's values"),
    "how many are not zero": (lambda x: x * int(x.nonzero().shape[0]), "a Python integer of an input's values"),
    "a constant of values": (lambda x: x * torch.tensor([x.sum(), 1.0]).sum(), "a constant by torch.tensor of an"),
    "an index": (lambda x: x[:, :, [x.argmax() % 6]], "of an input's values"),
    "a limit on a size": (lambda x: x[:, :16] if x.shape[1] > 16 else x, "a Python boolean of a size"),
    "a size as a number": (lambda x: x + torch.zeros(int(x.shape[0]), 1, 1), "a Python integer of a size"),
    "a loop over the batch": (lambda x: torch.stack([row * 2 for row in x]), "a Python iterator of a size"),
    "a count of a size": (lambda x: x + sum(i for i in range(x.shape[1])), "a Python index of a size"),
    "a constant of sizes": (lambda x: x + torch.tensor([x.shape[0], 1]).sum(), "of a size"),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale.sum() > 0:  # depends only on weights: the same for every input
            x = x * self.scale
        out: Tensor = self.function(x)
        return out


def baked(function: Callable[[Tensor], Any]) -> list[str]:
    torch.manual_seed(0)
    module = Net(function).eval()
    traces = [tracing.of(module, (torch.randn(*sizes, 6),)) for sizes in SIZES]
    return tracing.baked(traces[0], {str(sizes): found for sizes, found in zip(SIZES[1:], traces[1:], strict=True)})


@pytest.mark.parametrize("label", SHAPED)
def test_values_equal_at_all_sizes_are_not_reported(label: str) -> None:
    assert baked(SHAPED[label]) == []


@pytest.mark.parametrize("label", BAKED)
def test_values_specific_to_one_example_are_named_with_their_line(label: str) -> None:
    function, words = BAKED[label]
    found = baked(function)
    assert found
    assert all(one.startswith("tests/test_tracing.py:") for one in found)
    assert words in found[0]


def test_tracing_restores_the_tensor_methods() -> None:
    before = {name: getattr(torch.Tensor, name) for name in ("__bool__", "item", "numpy", "__iter__")}
    with pytest.raises(RuntimeError, match="shape"):
        tracing.of(Net(lambda x: x.reshape(7)), (torch.ones(1),))
    assert {name: getattr(torch.Tensor, name) for name in before} == before
    assert torch.tensor([1.0]).item() == 1
