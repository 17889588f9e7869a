import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, dtype, inner=None):
        super().__init__()
        torch.manual_seed(0)
        self.inner = inner
        self.a = nn.Linear(6, 16).to(dtype)
        self.b = nn.Linear(16, 3).to(dtype)

    def forward(self, x):
        y = self.b(torch.relu(self.a(x if self.inner is None else x.to(self.inner))))
        return y if self.inner is None else y.float()


class Mixed(nn.Module):
    """Takes pictures of bytes, words of int32, booleans and a scalar; returns floats, booleans, int32 and float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.picture = nn.Conv2d(3, 4, 3)
        self.words = nn.Embedding(20, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, image, ids, mask, scale):
        seen = self.picture(image.permute(0, 3, 1, 2).float() / 255).mean((2, 3))
        weight = mask[..., None].float()
        read = (self.words(ids) * weight).sum(1) / weight.sum(1).clamp(min=1)
        y = self.head(torch.cat([seen, read], 1)) * scale
        return y, y > 0, y.argmax(-1).to(torch.int32), y.double().sum(1)


def half():
    return Small(torch.float16)


def double():
    return Small(torch.float64)


def half_inside():
    return Small(torch.float16, torch.float16)


def brain_inside():
    return Small(torch.bfloat16, torch.bfloat16)


def mixed():
    return Mixed()


def rng(split):
    return np.random.default_rng(len(split))


def float16(split):
    return {"x": rng(split).standard_normal((80, 6)).astype(np.float16)}


def float32(split):
    return {"x": rng(split).standard_normal((80, 6)).astype(np.float32)}


def float64(split):
    return {"x": rng(split).standard_normal((80, 6))}


def several(split):
    random = rng(split)
    return {
        "image": random.integers(0, 256, (80, 12, 12, 3)).astype(np.uint8),
        "ids": random.integers(0, 20, (80, 7)).astype(np.int32),
        "mask": random.random((80, 7)) < 0.7,
        "scale": np.float32(2.5),
    }
