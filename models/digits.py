"""Handwritten digits: an MLP, a CNN, and a model with two inputs and two outputs.

The images are scikit-learn's `load_digits`, enlarged from 8x8 to 28x28 pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.fitting import fit
from models.measures import Array, Arrays, accuracy
from models.splits import part_of

__all__ = ["accuracy", "classifier", "cnn", "multi_io"]

Floats = npt.NDArray[np.float32]

# First row and end of each split in the shuffled data set.
SPLITS = {"train": (0, 1200), "calibration": (1200, 1350), "evaluation": (1350, None)}


def _digits(split: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Images [n, 28, 28] with grey levels 0 to 1, and their digits [n]."""
    from sklearn.datasets import load_digits

    start, end = part_of(SPLITS, split)
    data = load_digits()
    _, first = np.unique(data.data, axis=0, return_index=True)  # each image once, so that no two splits share one
    rows = np.random.default_rng(0).permutation(np.sort(first))[start:end]
    small = torch.from_numpy(data.images[rows].astype(np.float32) / 16)
    large = nn.functional.interpolate(small[:, None], size=(28, 28), mode="bilinear", align_corners=False)
    return large[:, 0].numpy(), data.target[rows].astype(np.int64)


class Classifier(nn.Module):
    """MLP from pixels [batch, 784] to logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 256)
        self.fc2 = nn.Linear(256, 10)
        self.relu = nn.ReLU()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the logits of images [batch, 784]."""
        return self.fc2(self.relu(self.fc1(image)))


def classifier() -> nn.Module:
    """Build the untrained MLP."""
    return Classifier()


def flat_samples(split: str) -> Arrays:
    """Load a split: `image` [n, 784] float32 and `label` [n] int64."""
    images, digits = _digits(split)
    return {"image": images.reshape(len(images), 784), "label": digits}


def train_classifier(seed: int) -> nn.Module:
    """Train the MLP with this seed."""
    samples = flat_samples("train")
    torch.manual_seed(seed)
    return fit(classifier(), [_tensor(samples, "image")], _tensor(samples, "label"), nn.CrossEntropyLoss(), seed, 20)


class Cnn(nn.Module):
    """CNN from images [batch, 1, 28, 28] to logits [batch, 10]."""

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
        """Compute the logits of images [batch, 1, 28, 28]."""
        x = self.pool(torch.relu(self.norm1(self.conv1(image))))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))


def cnn() -> nn.Module:
    """Build the untrained CNN."""
    return Cnn()


def image_samples(split: str) -> Arrays:
    """Load a split: `image` [n, 1, 28, 28] float32 and `label` [n] int64."""
    images, digits = _digits(split)
    return {"image": images[:, None], "label": digits}


def train_cnn(seed: int) -> nn.Module:
    """Train the CNN with this seed."""
    samples = image_samples("train")
    torch.manual_seed(seed)
    return fit(cnn(), [_tensor(samples, "image")], _tensor(samples, "label"), nn.CrossEntropyLoss(), seed, 8, 2e-3)


class MultiIO(nn.Module):
    """Two inputs, main_input [batch, 784] and auxiliary [batch, 256], to logits [batch, 10] and a value [batch, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(784, 256)
        self.classifier = nn.Linear(256, 10)
        self.regressor = nn.Linear(256, 1)

    def forward(self, main_input: torch.Tensor, auxiliary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute classification [batch, 10] and regression [batch, 1]."""
        features = torch.relu(self.encoder(main_input)) + auxiliary
        return self.classifier(features), self.regressor(features)


def multi_io() -> nn.Module:
    """Build the untrained model with two inputs and two outputs."""
    return MultiIO()


def multi_io_samples(split: str) -> Arrays:
    """Load a split.

    Returns:
        `main_input` [n, 784]: the pixels. `auxiliary` [n, 256]: a random projection of the mean grey level of each row
        and column. `label` [n, 2]: the digit, and the height of its centre of mass, 0 at the top and 1 at the bottom.
        All are float32.
    """
    images, digits = _digits(split)
    profile = np.concatenate([images.mean(axis=1), images.mean(axis=2)], axis=1)
    projection = np.random.default_rng(1).standard_normal((profile.shape[1], 256)).astype(np.float32) / 8
    rows = np.linspace(0, 1, images.shape[1], dtype=np.float32)
    height = (images.sum(axis=2) * rows).sum(axis=1) / images.sum(axis=(1, 2))
    return {
        "main_input": images.reshape(len(images), 784),
        "auxiliary": (profile @ projection).astype(np.float32),
        "label": np.stack([digits, height], axis=1).astype(np.float32),
    }


def train_multi_io(seed: int) -> nn.Module:
    """Train both heads together with this seed."""

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        digit = nn.functional.cross_entropy(outputs[0], labels[:, 0].long())
        return digit + 300 * nn.functional.mse_loss(outputs[1][:, 0], labels[:, 1])

    samples = multi_io_samples("train")
    torch.manual_seed(seed)
    inputs = [_tensor(samples, "main_input"), _tensor(samples, "auxiliary")]
    return fit(multi_io(), inputs, _tensor(samples, "label"), loss, seed, 60, 3e-3)


def multi_io_quality(outputs: Arrays, labels: Array) -> float:
    """Compute the mean of the digits' accuracy and the heights' R2.

    Args:
        outputs: `classification` [n, 10] and `regression` [n, 1].
        labels: Digit and height, [n, 2].

    Returns:
        A quality from 0 to 1. A negative R2 counts as 0.
    """
    digit, height = labels[:, 0], labels[:, 1]
    correct = float(np.mean(outputs["classification"].argmax(axis=1) == digit))
    unexplained = np.square(outputs["regression"][:, 0] - height).mean() / np.var(height)
    return (correct + max(0.0, 1 - float(unexplained))) / 2


def _tensor(samples: Arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples[name]))
