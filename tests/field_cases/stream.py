import numpy as np
import torch
from torch import nn


class Step(nn.Module):
    """One step of a recurrent network, with the batch on the second axis of its state and a rate as a scalar."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(6, 8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, chunk, state, rate):
        y, state = self.cell(chunk[None] * (rate / 16000), state)
        return self.head(y[0]), state


def build():
    torch.manual_seed(3)
    return Step()


def samples(split):
    rng = np.random.default_rng(len(split))
    chunk = rng.standard_normal((60, 12, 6)).astype(np.float32)
    return {"chunk": chunk, "label": (chunk[:, :, 0] > 0).astype(np.int64)}


def quality(outputs, labels):
    assert outputs["y"].shape == (*labels.shape, 3)
    return float((outputs["y"].argmax(-1) == labels).mean())
