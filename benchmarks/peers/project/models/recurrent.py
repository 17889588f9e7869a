"""Two sequence models: an LSTM that predicts the next word, and a temporal CNN that classifies chirps."""

from __future__ import annotations

import functools
import re
import zlib

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.fitting import fit
from models.measures import Arrays, accuracy

__all__ = ["accuracy", "lstm", "tcn"]

WORDS, HIDDEN, WINDOW = 10_000, 512, 32
BANDS, FRAMES, CHIRPS = 64, 128, 12
SPLITS = {"train": (0, 960), "calibration": (960, 1088), "evaluation": (1088, 1344)}


class Lstm(nn.Module):
    """Word ids [batch, sequence] to logits of the next word [batch, 10000]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, WORDS)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map ids [batch, sequence] to logits [batch, 10000]."""
        steps, _ = self.lstm(self.words(input_ids))
        return self.fc(steps[:, -1, :])


def lstm() -> nn.Module:
    """The LSTM, untrained."""
    return Lstm()


@functools.cache
def _windows() -> npt.NDArray[np.int64]:
    """Windows [n, 33] of word ids (crc32 modulo 10000) from Python's reference manual, without duplicates."""
    from pydoc_data.topics import topics

    words = re.findall(r"[a-z]+|[^\sa-z]", " ".join(topics[name] for name in sorted(topics)).lower())
    ids = np.array([zlib.crc32(word.encode()) % WORDS for word in words], dtype=np.int64)
    rows = np.unique(ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1), axis=0)
    return rows[np.random.default_rng(0).permutation(len(rows))]


def word_samples(split: str) -> Arrays:
    """Samples: input_ids [n, 32] int64, and the next word as label [n] int64."""
    rows = _windows()[slice(*SPLITS[split])]
    return {"input_ids": rows[:, :WINDOW], "label": rows[:, WINDOW]}


def train_lstm(seed: int) -> nn.Module:
    """Train to predict the word after each window."""
    found = word_samples("train")
    torch.manual_seed(seed)
    ids, labels = torch.from_numpy(found["input_ids"]), torch.from_numpy(found["label"])
    return fit(lstm(), [ids], labels, nn.CrossEntropyLoss(), seed, 3, 3e-3, 64)


class Dilated(nn.Module):
    """Two dilated convolutions with a residual."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation)
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, 5, padding=2 * dilation, dilation=dilation)
        self.norm2 = nn.BatchNorm1d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, channels, frames] to the same shape."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + x)


class Tcn(nn.Module):
    """Log energies [batch, 64 bands, frames] to logits [batch, 12]."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv1d(BANDS, channels, 1)
        self.blocks = nn.Sequential(*(Dilated(channels, 2**number) for number in range(5)))
        self.fc = nn.Linear(channels, CHIRPS)

    def forward(self, bands: torch.Tensor) -> torch.Tensor:
        """Map [batch, 64, frames] to logits [batch, 12]."""
        return self.fc(self.blocks(torch.relu(self.stem(bands))).mean(dim=2))


def tcn() -> nn.Module:
    """The temporal convolutional network, untrained."""
    return Tcn()


def chirp_samples(split: str) -> Arrays:
    """Samples: bands [n, 64, 128] float32, and label [n] int64: one of twelve frequency sweeps in noise."""
    first, last = SPLITS[split]
    rng = np.random.default_rng(first + 1)
    labels = np.arange(last - first) % CHIRPS
    time = np.arange(FRAMES * BANDS) / (FRAMES * BANDS)
    begin = 0.05 + 0.3 * (labels % 4) / 4 + rng.uniform(0, 0.05, len(labels))
    rise = 0.1 * (labels // 4 - 1)
    phase = np.pi * (begin[:, None] + rise[:, None] * time / 2) * time * FRAMES * BANDS
    wave = np.sin(2 * phase) + rng.normal(0, 0.7, (len(labels), len(time)))
    windows = wave.reshape(len(labels), FRAMES, BANDS) * np.hanning(BANDS)
    power = np.abs(np.fft.rfft(windows, 2 * BANDS, axis=2)[:, :, :BANDS]) ** 2
    return {"bands": np.log(power + 1e-3).transpose(0, 2, 1).astype(np.float32), "label": labels.astype(np.int64)}


def train_tcn(seed: int) -> nn.Module:
    """Train the network."""
    found = chirp_samples("train")
    torch.manual_seed(seed)
    bands, labels = torch.from_numpy(found["bands"]), torch.from_numpy(found["label"])
    return fit(tcn(), [bands], labels, nn.CrossEntropyLoss(), seed, 3, 3e-3, 32)
