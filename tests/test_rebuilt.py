"""Two builds of one module are equal, or their differences are reported."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from onward.stages.workers.rebuilt import differences


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(2, 2)
        self.register_buffer("features", torch.randn(3), persistent=False)
        self.wiring = torch.randperm(64)
        self.tables = {"a": [np.full(2, seed)]}
        self.mean = float(seed)


def test_two_equal_builds_give_equal_modules() -> None:
    assert differences(Net(), Net(), plain=True) == []


def test_weights_buffers_and_other_tensors_are_compared_and_numbers_on_request() -> None:
    found = differences(Net(0), Net(1), plain=True)
    for name in ("layer.weight", "features", "wiring", "tables['a'][0]"):
        assert any(words.startswith(f"{name} has different values in the two (") for words in found)
    assert "mean is 0.0 in one and 1.0 in the other" in found
    assert not any("mean" in words for words in differences(Net(0), Net(1)))


def test_a_tensor_missing_from_one_module_is_reported() -> None:
    other = Net()
    other.scale = torch.ones(1)
    assert differences(Net(), other) == ["scale is in only one of the two"]


def test_nan_and_minus_infinity_compare_equal() -> None:
    one, other = Net(), Net()
    for net in (one, other):
        net.mask = torch.tensor([float("-inf"), float("nan"), 0.0])
    assert differences(one, other) == []
