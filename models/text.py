"""Text models: an LSTM that predicts the next character, and a transformer encoder that classifies source code.

Both learn from texts of Python's standard library. The encoder predicts the package that a passage comes from.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.fitting import fit
from models.measures import Arrays, accuracy
from models.splits import part_of

__all__ = ["accuracy", "sequence", "transformer"]

Integers = npt.NDArray[np.int64]

# Remainders modulo 8 of the document numbers in each split. No document is in two splits.
SPLITS = {"train": range(6), "calibration": range(6, 7), "evaluation": range(7, 8)}

CHARACTERS = 96  # character ids: 1 to 95 for printable ASCII, 0 for all others
WINDOW = 32  # characters in an input
# Documents quote each other. A window is left out of a split if another split has this many of its characters in a row.
QUOTED = 24

WORDS = 4096  # word ids: 0 for padding, 1 unused, hashes from 2 on
PASSAGE = 64  # most words in an input
SHARED = 8  # like QUOTED, in words; passages share licences and idioms
T = TypeVar("T")

PACKAGES = ("asyncio", "email", "unittest", "multiprocessing", "xml")


def _part(split: str, whole: list[T]) -> list[T]:
    """The documents of a split."""
    remainders = part_of(SPLITS, split)
    return [item for number, item in enumerate(whole) if number % 8 in remainders]


class Sequence(nn.Module):
    """LSTM from character ids [batch, sequence] to logits of the next character [batch, 96]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 64)
        self.lstm = nn.LSTM(64, 256, batch_first=True)
        self.fc = nn.Linear(256, CHARACTERS)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits after the last character."""
        steps, _ = self.lstm(self.embedding(input_ids))
        return self.fc(steps[:, -1, :])


class EveryStep(nn.Module):
    """Logits after every character, [batch, 96, sequence], for training: each window gives 32 targets."""

    def __init__(self, inner: Sequence) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Compute the logits after each character."""
        steps, _ = self.inner.lstm(self.inner.embedding(input_ids))
        return self.inner.fc(steps).transpose(1, 2)


def sequence() -> nn.Module:
    """Build the untrained LSTM."""
    return Sequence()


def _runs(ids: Integers, length: int) -> set[bytes]:
    """Every run of `length` consecutive ids, as bytes."""
    raw, size = ids.tobytes(), ids.itemsize
    return {raw[start * size : (start + length) * size] for start in range(len(ids) - length + 1)}


@functools.cache
def _documents(split: str) -> list[Integers]:
    """Character ids of the documents of a split: the topics of Python's built-in help."""
    from pydoc_data.topics import topics

    found = []
    for text in _part(split, [topics[name] for name in sorted(topics)]):
        plain = re.sub(r"\s+", " ", text)
        codes = np.frombuffer(plain.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 31
        found.append(np.where((codes >= 1) & (codes < CHARACTERS), codes, 0))
    return found


@functools.cache
def _windows(split: str) -> Integers:
    """The distinct windows of a split in random order, [n, 33] character ids."""
    step = WINDOW + 1
    rows = [ids[start : start + step] for ids in _documents(split) for start in range(0, len(ids) - WINDOW, step)]
    unique = np.unique(np.array(rows), axis=0)
    return unique[np.random.default_rng(0).permutation(len(unique))]


@functools.cache
def _held_out(split: str) -> Integers:
    """The windows without a quotation from another split."""
    elsewhere: set[bytes] = set()
    for other in SPLITS:
        if other != split:
            elsewhere = elsewhere.union(*(_runs(ids, QUOTED) for ids in _documents(other)))
    return np.array([row for row in _windows(split) if elsewhere.isdisjoint(_runs(row, QUOTED))])


def sequence_samples(split: str) -> Arrays:
    """Load a split: `input_ids` [n, 32] int64 and `label` [n] int64, the id of the next character."""
    windows = _windows(split) if split == "train" else _held_out(split)[: 200 if split == "calibration" else 500]
    return {"input_ids": windows[:, :WINDOW], "label": windows[:, WINDOW]}


def train_sequence(seed: int) -> nn.Module:
    """Train the LSTM with this seed to predict the next character at every step of a window."""
    windows = torch.from_numpy(_windows("train"))
    torch.manual_seed(seed)
    model = Sequence()
    fit(EveryStep(model), [windows[:, :-1]], windows[:, 1:], nn.CrossEntropyLoss(), seed, 3, 5e-3, 64)
    return model


class Attention(nn.Module):
    """Multi-head self-attention over [batch, sequence, hidden], with an additive mask [batch, 1, 1, sequence]."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, sequence, hidden] to [batch, heads, sequence, hidden / heads]."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend over the sequence; the result has the shape of x."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = torch.softmax(scores + mask, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention and a feed-forward network, each with a residual and then a layer norm, as in BERT."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Transform [batch, sequence, hidden]; the mask is that of Attention."""
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Transformer(nn.Module):
    """Encoder from word ids and attention mask, both [batch, sequence <= 128], to logits [batch, 5]."""

    def __init__(self, hidden: int = 128, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, hidden)
        self.positions = nn.Embedding(128, hidden)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)  # as in BERT; PyTorch's default of 1.0 overfits here
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(blocks))
        self.classifier = nn.Linear(hidden, len(PACKAGES))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the logits of each passage."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(position))
        keep = attention_mask.to(x.dtype)
        mask = (1.0 - keep)[:, None, None, :] * -1e4  # not -inf: a row without words must stay finite
        for block in self.blocks:
            x = block(x, mask)
        pooled = (x * keep[:, :, None]).sum(dim=1) / keep.sum(dim=1, keepdim=True).clamp(min=1.0)
        return self.classifier(pooled)


def transformer() -> nn.Module:
    """Build the untrained encoder."""
    return Transformer()


@functools.cache
def _files(package: str) -> list[Integers]:
    """Word ids of each source file of a package with at least 16 words."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = []
    for file in sorted(Path(spec.submodule_search_locations[0]).rglob("*.py")):
        words = re.findall(r"[a-z]{2,}", file.read_text(encoding="utf-8").lower())
        if len(words) >= 16:
            files.append(np.array([2 + zlib.crc32(word.encode()) % (WORDS - 2) for word in words], dtype=np.int64))
    return files


@functools.cache
def _passages(package: str, split: str) -> list[Integers]:
    """The distinct passages of a package's files in a split: 16 to 64 word ids, padded with zeros to 64."""
    rng = np.random.default_rng(0)
    rows: dict[bytes, Integers] = {}
    for words in _part(split, _files(package)):
        start = 0
        while start + 16 <= len(words):
            part = words[start : start + int(rng.integers(16, PASSAGE + 1))]
            row = np.zeros(PASSAGE, dtype=np.int64)
            row[: len(part)] = part
            rows[row.tobytes()] = row
            start += len(part)
    return list(rows.values())


@functools.cache
def _elsewhere(split: str) -> set[bytes]:
    """Every run of SHARED words in the files of the other splits."""
    others = (part for other in SPLITS if other != split for name in PACKAGES for part in _part(other, _files(name)))
    return set().union(*(_runs(words, SHARED) for words in others))


def passage_samples(split: str) -> Arrays:
    """Load a split: `input_ids` and `attention_mask` [n, 64] int64, and `label` [n] int64, the index in PACKAGES."""
    limit = {"train": 400, "calibration": 40}.get(split, 80)
    rng = np.random.default_rng(1)
    rows, labels = [], []
    for label, package in enumerate(PACKAGES):
        passages = _passages(package, split)
        if split != "train":
            passages = [row for row in passages if _elsewhere(split).isdisjoint(_runs(row[row != 0], SHARED))]
        rows += [passages[i] for i in rng.permutation(len(passages))[:limit]]
        labels += [label] * min(limit, len(passages))
    order = rng.permutation(len(rows))
    ids = np.array(rows)[order]
    mask = (ids != 0).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "label": np.array(labels, dtype=np.int64)[order]}


def passage_cases(sizes: dict[str, int], rng: np.random.Generator) -> Arrays:
    """Make random inputs for verification: word ids, and masks of random length as padding produces them.

    Args:
        sizes: Sizes of the dimensions `batch` and `sequence`.
        rng: Source of randomness.
    """
    shape = (sizes["batch"], sizes["sequence"])
    lengths = rng.integers(1, shape[1], size=(shape[0], 1), endpoint=True)
    return {
        "input_ids": rng.integers(0, WORDS, shape),
        "attention_mask": (np.arange(shape[1]) < lengths).astype(np.int64),
    }


def train_transformer(seed: int) -> nn.Module:
    """Train the encoder with this seed."""
    samples = passage_samples("train")
    inputs = [torch.from_numpy(samples["input_ids"]), torch.from_numpy(samples["attention_mask"])]
    torch.manual_seed(seed)
    return fit(transformer(), inputs, torch.from_numpy(samples["label"]), nn.CrossEntropyLoss(), seed, 4, 1e-3, 32)
