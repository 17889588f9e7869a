"""Handwritten digits (scikit-learn's, 8x8, enlarged to 28x28): an MLP, a CNN, and a model of two inputs and outputs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.fitting import fit
from models.measures import Array, Arrays, accuracy

__all__ = ["accuracy", "classifier", "cnn", "multi_io"]

Floats = npt.NDArray[np.float32]

# Where each split begins and ends in the shuffled data set.
SPLITS = {"train": (0, 1200), "calibration": (1200, 1350), "evaluation": (1350, None)}


def _digits(split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Pictures [n, 28, 28] with grey levels 0 to 1, and their digits [n]."""
    from sklearn.datasets import load_digits

    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
    data = load_digits()
    _, first = np.unique(data.data, axis=0, return_index=True)  # each picture once, so that no split shares one
    rows = np.random.default_rng(0).permutation(np.sort(first))[slice(*SPLITS[split])]
    small = torch.from_numpy(data.images[rows].astype(np.float32) / 16)
    large = nn.functional.interpolate(small[:, None], size=(28, 28), mode="bilinear", align_corners=False)
    return large[:, 0].numpy(), data.target[rows].astype(np.int64)


class Classifier(nn.Module):
    """[batch, 784] to logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.fc2 = nn.Linear(256, 10)
        self.relu = nn.ReLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.fc1(image)))


def classifier() -> nn.Module:
    """The MLP, untrained."""
    return Classifier()


def flat_samples(split: str) -> Arrays:
    """image [n, 784] float32 and label [n] int64."""
    pictures, digits = _digits(split)
    return {"image": pictures.reshape(len(pictures), 784), "label": digits}


def train_classifier(seed: int) -> nn.Module:
    """Train the MLP."""
    samples = flat_samples("train")
    torch.manual_seed(seed)
    return fit(classifier(), [_tensor(samples, "image")], _tensor(samples, "label"), nn.CrossEntropyLoss(), seed, 20)


class Cnn(nn.Module):
    """[batch, 1, 28, 28] to logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm1(self.conv1(image))))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))


def cnn() -> nn.Module:
    """The CNN, untrained."""
    return Cnn()


def image_samples(split: str) -> Arrays:
    """image [n, 1, 28, 28] float32 and label [n] int64."""
    pictures, digits = _digits(split)
    return {"image": pictures[:, None], "label": digits}


def train_cnn(seed: int) -> nn.Module:
    """Train the CNN."""
    samples = image_samples("train")
    torch.manual_seed(seed)
    return fit(cnn(), [_tensor(samples, "image")], _tensor(samples, "label"), nn.CrossEntropyLoss(), seed, 8, 2e-3)


class MultiIO(nn.Module):
    """main_input [batch, 784] and auxiliary [batch, 256] to classification [batch, 10] and regression [batch, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(784, 256)
        self.classifier = nn.Linear(256, 10)
        self.regressor = nn.Linear(256, 1)

    def forward(self, main_input: torch.Tensor, auxiliary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.encoder(main_input)) + auxiliary
        return self.classifier(features), self.regressor(features)


def multi_io() -> nn.Module:
    """The model of two inputs and two outputs, untrained."""
    return MultiIO()


def multi_io_samples(split: str) -> Arrays:
    """main_input [n, 784], auxiliary [n, 256]: the ink of each row and column, projected; label [n, 2]: the digit, and
    the height of its centre of mass, 0 at the top and 1 at the bottom. All float32."""
    pictures, digits = _digits(split)
    profile = np.concatenate([pictures.mean(axis=1), pictures.mean(axis=2)], axis=1)
    projection = np.random.default_rng(1).standard_normal((profile.shape[1], 256)).astype(np.float32) / 8
    rows = np.linspace(0, 1, pictures.shape[1], dtype=np.float32)
    height = (pictures.sum(axis=2) * rows).sum(axis=1) / pictures.sum(axis=(1, 2))
    return {
        "main_input": pictures.reshape(len(pictures), 784),
        "auxiliary": (profile @ projection).astype(np.float32),
        "label": np.stack([digits, height], axis=1).astype(np.float32),
    }


def train_multi_io(seed: int) -> nn.Module:
    """Train both heads at once."""

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        digit = nn.functional.cross_entropy(outputs[0], labels[:, 0].long())
        return digit + 300 * nn.functional.mse_loss(outputs[1][:, 0], labels[:, 1])

    samples = multi_io_samples("train")
    torch.manual_seed(seed)
    inputs = [_tensor(samples, "main_input"), _tensor(samples, "auxiliary")]
    return fit(multi_io(), inputs, _tensor(samples, "label"), loss, seed, 60, 3e-3)


def multi_io_quality(outputs: Arrays, labels: Array) -> float:
    """Mean of the digits' accuracy and the heights' coefficient of determination (0 where that is negative)."""
    digit, height = labels[:, 0], labels[:, 1]
    right = float(np.mean(outputs["classification"].argmax(axis=1) == digit))
    error = np.square(outputs["regression"][:, 0] - height).mean() / np.var(height)
    return (right + max(0.0, 1 - float(error))) / 2


def _tensor(samples: Arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples[name]))
