"""Small correct models of many kinds: exporters may convert them wrongly, and checks must accept them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[..., Any]

MODELS: dict[str, dict[str, Any]] = {}


def model(inputs: dict[str, Any], outputs: dict[str, list[Any]], **dims: tuple[int, int, list[int]]) -> Any:
    """Register a module class under its lower-case name, with its settings in params.yaml.

    A dimension is (min, max, typical); `batch` always exists.
    """

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        name = kind.__name__.lower()

        def build() -> nn.Module:
            torch.manual_seed(7)
            module = kind()
            for child in module.modules():  # replace statistics and scales that have no effect
                if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.normal_(child.get_buffer("running_mean"), std=0.5)
                    nn.init.uniform_(child.get_buffer("running_var"), 0.5, 2.0)
                if isinstance(bias := getattr(child, "bias", None), Tensor):
                    nn.init.normal_(bias, std=0.3)
            return module.eval()

        globals()[f"build_{name}"] = build
        MODELS[name] = {
            "build": f"tests.architectures:build_{name}",
            "samples": "tests.architectures:MODELS",
            "inputs": {n: spec if isinstance(spec, dict) else {"shape": spec} for n, spec in inputs.items()},
            "outputs": {n: {"shape": shape} for n, shape in outputs.items()},
            "dims": {
                n: {"min": low, "max": high, "typical": typical}
                for n, (low, high, typical) in {"batch": (1, 16, [1, 4]), **dims}.items()
            },
        }
        return kind

    return register


IDS = {"dtype": "int64", "range": [0, 49]}
MASK = {"dtype": "int64", "range": [0, 1]}
TIME = (1, 24, [6])
IMAGE = ["batch", 3, 12, 12]


@model({"x": ["batch", 8]}, {"y": ["batch", 4]})
class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 4))


@model({"x": IMAGE}, {"y": ["batch", 5]})
class Conv(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(), nn.Flatten(), nn.Linear(288, 5),
        )  # fmt: skip


@model({"x": IMAGE}, {"y": ["batch", 4, 12, 12]})
class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU6(), nn.Conv2d(3, 4, 1), nn.SiLU())


@model({"x": IMAGE}, {"y": ["batch", 3]})
class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (x + F.relu(self.norm(self.conv(x)))).mean(dim=(2, 3))


@model({"ids": {"shape": ["batch", "time"], **IDS}}, {"y": ["batch", 4]}, time=TIME)
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(ids))[0][:, -1])


@model({"x": ["batch", "time", 6]}, {"y": ["batch", "time", 10]}, time=TIME)
class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 10, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


@model({"x": ["batch", "time", 6]}, {"y": ["batch", "time", 16]}, time=TIME)
class Bidirectional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


@model(
    {"x": ["batch", "time", 16], "mask": {"shape": ["batch", "time"], **MASK}}, {"y": ["batch", "time", 16]}, time=TIME
)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(x.shape[0], x.shape[1], 4, 4).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(4) + (1.0 - mask.to(x.dtype))[:, None, None] * -1e4
        mixed = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(x.shape)
        return self.norm(x + self.out(mixed))


@model({"x": ["batch", "time", 16]}, {"y": ["batch", "time", 16]}, time=TIME)
class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(x.shape[0], x.shape[1], 2, 8).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1)
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)


@model({"x": ["batch", "time", 16]}, {"y": ["batch", "time", 16]}, time=TIME)
class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@model({"x": ["batch", 8, 6, 6]}, {"y": ["batch", 8, 6, 6]})
class Groups(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8, affine=True))


@model({"x": ["batch", "time", 16]}, {"y": ["batch", "time", 16]}, time=TIME)
class FeedForward(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.LayerNorm(16), nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))


@model({"x": ["batch", "time", 16]}, {"y": ["batch", "time", 16]}, time=TIME)
class Rotary(nn.Module):
    """RMS normalization and rotary position embedding, as in current language models."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 10000 ** (-torch.arange(8, dtype=x.dtype) / 8)
        cos, sin = torch.cos(angles), torch.sin(angles)
        a, b = x[..., :8], x[..., 8:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@model({"x": ["batch", "time", 6], "at": {"shape": ["batch"], **MASK}}, {"y": ["batch", 6]}, time=(2, 24, [6]))
class Gather(nn.Module):
    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return x[torch.arange(x.shape[0]), at] + x.index_select(1, torch.tensor([1, 0])).sum(1)


@model({"x": ["batch", 10], "at": {"dtype": "int64", "shape": ["batch", 10], "range": [0, 4]}}, {"y": ["batch", 5]})
class Scatter(nn.Module):
    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 5, dtype=x.dtype).scatter_add(1, at, x)


@model({"x": ["batch", 8]}, {"y": ["batch", 4]})
class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))


@model({"x": ["batch", 8]}, {"y": ["batch", 4]})
class Branching(nn.Module):
    """A Python branch on input values, which only torch.jit.script preserves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return self.a(x)
        return self.b(x)


@model({"x": ["batch", 3, 6, 6]}, {"y": ["batch", 3, 12, 12]})
class Resize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


@model({"x": ["batch", 4, 6, 6]}, {"y": ["batch", 2, 24, 24]})
class Upwards(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.ConvTranspose2d(4, 8, 2, stride=2), nn.ELU(), nn.PixelShuffle(2))


@model({"x": ["batch", 8]}, {"a": ["batch", 4], "b": ["batch", 4], "c": ["batch"]})
class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = self.a(x)
        return {"a": a, "b": torch.tanh(self.b(x)) * a, "c": a.logsumexp(1)}


@model({"x": ["batch", 8]}, {"values": ["batch", 3], "best": ["batch"]})
class Ranking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return torch.topk(scores, 3, dim=1).values, scores.argmax(1)


@model({"x": ["batch", 8]}, {"y": ["batch", 8], "order": ["batch", 3]})
class Ties(nn.Module):
    """Operations undefined for equal values: an order, and a division by a standard deviation."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), torch.topk(x, 3, dim=1).indices


@model({"x": ["batch", "time", 4], "y": ["batch", "time", 4]}, {"z": ["batch", "time", "time"]}, time=TIME)
class Einsum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bic,bjc->bij", x, y * 2 + 1)


@model({"x": ["batch", "time"]}, {"y": ["batch", "time"]}, time=TIME)
class Running(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, dim=1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)


@model({"x": ["batch", 8], "on": {"dtype": "bool", "shape": ["batch", 8]}}, {"y": ["batch", 8]})
class Masked(nn.Module):
    def forward(self, x: Tensor, on: Tensor) -> Tensor:
        return F.softmax(x.masked_fill(~on, -1e4), dim=1).where(on, torch.zeros((), dtype=x.dtype)) + F.softplus(x)


@model({"x": ["batch", 8], "y": ["batch", 8]}, {"z": ["batch", 8]})
class Wrapped(nn.Module):
    """A forward() that passes on its arguments, as wrappers do."""

    def forward(self, *tensors: Tensor) -> Tensor:
        return torch.stack(tensors).prod(0)


@model({"x": ["batch", 3, 11, 7]}, {"y": ["batch", 12]})
class Pooled(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.AvgPool2d(3, stride=2, padding=1), nn.LeakyReLU(), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()
        )


@model({"x": ["batch", 8]}, {"y": ["batch", 8]})
class InPlace(nn.Module):
    """Writes to its argument, and to a view of its own tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x.relu_()
        y = x * 2
        y[:, 0] = 0.5
        return y


@model({"x": ["batch", 8, 8, 4]}, {"y": ["batch", 8, 8, 4]})
class Windows(nn.Module):
    """Shifted windows, rolled and cut, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = torch.roll(x, (-1, -1), (1, 2)).view(b, 4, 2, 4, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 4, 4, 16)
        return self.mix(x).view(b, 4, 4, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 8, 8, 4)


@model({"x": ["batch", "time"]}, {"y": ["batch", "time"]}, time=TIME)
class Signal(nn.Module):
    """Padding, a sliding difference, absolute values, logarithms."""

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1))
        return torch.log1p((padded[:, 2:] - padded[:, :-2]).abs()) * torch.sign(x)
