"""Text, from the standard library itself: an LSTM that guesses the next character, and a small transformer encoder
that says which package a passage of source comes from."""

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

__all__ = ["accuracy", "sequence", "transformer"]

Integers = npt.NDArray[np.int64]

# Which documents, by their number modulo 8, make which split: none is in two.
SPLITS = {"train": range(6), "calibration": range(6, 7), "evaluation": range(7, 8)}

CHARACTERS = 96  # 0 for what is not printable ASCII, 1 to 95 for the others
WINDOW = 32
QUOTED = 24  # documents quote each other: as many characters running that another split has, and a window is left out

WORDS = 4096  # 0 pads, 1 is unused, the rest are hashes
PASSAGE = 64
SHARED = 8  # likewise, in words: licences and idioms
T = TypeVar("T")

PACKAGES = ("asyncio", "email", "unittest", "multiprocessing", "xml")


def _part(split: str, whole: list[T]) -> list[T]:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are {', '.join(SPLITS)}")
    return [item for number, item in enumerate(whole) if number % 8 in SPLITS[split]]


class Sequence(nn.Module):
    """Character ids [batch, sequence] to logits of the next character [batch, 96]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 64)
        self.lstm = nn.LSTM(64, 256, batch_first=True)
        self.fc = nn.Linear(256, CHARACTERS)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        steps, _ = self.lstm(self.embedding(input_ids))
        return self.fc(steps[:, -1, :])


class EveryStep(nn.Module):
    """For training alone: a guess after every character, [batch, 96, sequence], so that a window teaches 32 times."""

    def __init__(self, inner: Sequence) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        steps, _ = self.inner.lstm(self.inner.embedding(input_ids))
        return self.inner.fc(steps).transpose(1, 2)


def sequence() -> nn.Module:
    """The LSTM, untrained."""
    return Sequence()


def _runs(ids: Integers, length: int) -> set[bytes]:
    """Every run of `length` ids in a row of ids."""
    raw, size = ids.tobytes(), ids.itemsize
    return {raw[at * size : (at + length) * size] for at in range(len(ids) - length + 1)}


@functools.cache
def _documents(split: str) -> list[Integers]:
    """Character ids of the topics of Python's own reference."""
    from pydoc_data.topics import topics

    found = []
    for text in _part(split, [topics[name] for name in sorted(topics)]):
        plain = re.sub(r"\s+", " ", text)
        codes = np.frombuffer(plain.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 31
        found.append(np.where((codes >= 1) & (codes < CHARACTERS), codes, 0))
    return found


@functools.cache
def _windows(split: str) -> Integers:
    """Windows [n, 33] of character ids, each once."""
    step = WINDOW + 1
    rows = [ids[at : at + step] for ids in _documents(split) for at in range(0, len(ids) - WINDOW, step)]
    unique = np.unique(np.array(rows), axis=0)
    return unique[np.random.default_rng(0).permutation(len(unique))]


@functools.cache
def _held_out(split: str) -> Integers:
    """The windows that quote no document of another split."""
    elsewhere: set[bytes] = set()
    for other in SPLITS:
        if other != split:
            elsewhere = elsewhere.union(*(_runs(ids, QUOTED) for ids in _documents(other)))
    return np.array([row for row in _windows(split) if elsewhere.isdisjoint(_runs(row, QUOTED))])


def sequence_samples(split: str) -> Arrays:
    """input_ids [n, 32] int64, and as label the character that follows, [n] int64."""
    windows = _windows(split) if split == "train" else _held_out(split)[: 200 if split == "calibration" else 500]
    return {"input_ids": windows[:, :WINDOW], "label": windows[:, WINDOW]}


def train_sequence(seed: int) -> nn.Module:
    """Train the LSTM to guess the next character at every step of a window."""
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
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = torch.softmax(scores + mask, dim=-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """Attention and a feed-forward network, each with a residual and a layer norm after it, as in BERT."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.norm1 = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Transformer(nn.Module):
    """Word ids and attention mask, both [batch, sequence], to logits [batch, 5]; sequence is 128 at most."""

    def __init__(self, hidden: int = 128, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, hidden)
        self.positions = nn.Embedding(128, hidden)
        for table in (self.words, self.positions):
            nn.init.normal_(table.weight, std=0.02)  # as in BERT: PyTorch's own 1.0 learns passages by heart
        self.norm = nn.LayerNorm(hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(blocks))
        self.classifier = nn.Linear(hidden, len(PACKAGES))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(position))
        keep = attention_mask.to(x.dtype)
        mask = (1.0 - keep)[:, None, None, :] * -1e4  # not -inf: a row without any word must stay finite
        for block in self.blocks:
            x = block(x, mask)
        pooled = (x * keep[:, :, None]).sum(dim=1) / keep.sum(dim=1, keepdim=True).clamp(min=1.0)
        return self.classifier(pooled)


def transformer() -> nn.Module:
    """The encoder, untrained."""
    return Transformer()


@functools.cache
def _files(package: str) -> list[Integers]:
    """Word ids of each source file of a package that has a passage's worth."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    files = []
    for file in sorted(Path(found.submodule_search_locations[0]).rglob("*.py")):
        words = re.findall(r"[a-z]{2,}", file.read_text(encoding="utf-8").lower())
        if len(words) >= 16:
            files.append(np.array([2 + zlib.crc32(word.encode()) % (WORDS - 2) for word in words], dtype=np.int64))
    return files


@functools.cache
def _passages(package: str, split: str) -> list[Integers]:
    """Every passage of a package's files once: 16 to 64 word ids, padded with zeros to 64."""
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
    """Every run of words in the other splits' files."""
    others = (part for other in SPLITS if other != split for name in PACKAGES for part in _part(other, _files(name)))
    return set().union(*(_runs(words, SHARED) for words in others))


def passage_samples(split: str) -> Arrays:
    """input_ids and attention_mask [n, 64] int64, label [n] int64: the number of the package in PACKAGES."""
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
    """Random words with masks that are on from the start of each row to somewhere in it, as padding leaves them."""
    shape = (sizes["batch"], sizes["sequence"])
    lengths = rng.integers(1, shape[1], size=(shape[0], 1), endpoint=True)
    return {
        "input_ids": rng.integers(0, WORDS, shape),
        "attention_mask": (np.arange(shape[1]) < lengths).astype(np.int64),
    }


def train_transformer(seed: int) -> nn.Module:
    """Train the encoder."""
    samples = passage_samples("train")
    inputs = [torch.from_numpy(samples["input_ids"]), torch.from_numpy(samples["attention_mask"])]
    torch.manual_seed(seed)
    return fit(transformer(), inputs, torch.from_numpy(samples["label"]), nn.CrossEntropyLoss(), seed, 4, 1e-3, 32)
