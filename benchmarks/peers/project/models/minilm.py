"""A MiniLM-class text encoder: BERT of 6 layers, hidden 384, 12 heads, with the weights of all-MiniLM-L6-v2."""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.measures import Arrays

Integers = npt.NDArray[np.int64]

LAYERS, HIDDEN, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
UNKNOWN, BEGIN, END = 100, 101, 102
LENGTH = 64
VOCABULARY_FILE = Path(__file__).parent.parent / "weights" / "vocab.txt"


class Embeddings(nn.Module):
    """The sum of word, position and segment embeddings, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, HIDDEN, padding_idx=0)
        self.position_embeddings = nn.Embedding(POSITIONS, HIDDEN)
        self.token_type_embeddings = nn.Embedding(2, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map ids [batch, sequence] to [batch, sequence, hidden]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        words = self.word_embeddings(input_ids) + self.token_type_embeddings(torch.zeros_like(input_ids))
        return self.LayerNorm(words + self.position_embeddings(positions))


class SelfAttention(nn.Module):
    """Query, key and value projections with PyTorch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, hidden] to the same shape."""
        shape = (x.shape[0], x.shape[1], HEADS, HIDDEN // HEADS)
        query, key, value = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(x.shape)


class Dense(nn.Module):
    """A projection, followed by a residual sum and a layer norm."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, HIDDEN)
        self.LayerNorm = nn.LayerNorm(HIDDEN, eps=1e-12)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, inputs] to [batch, sequence, hidden]."""
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention with its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = Dense(HIDDEN)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, hidden] to the same shape."""
        return self.output(self.self(x, mask), x)


class Intermediate(nn.Module):
    """The first half of the feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(HIDDEN, INTERMEDIATE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, hidden] to [batch, sequence, intermediate]."""
        return nn.functional.gelu(self.dense(x))


class Layer(nn.Module):
    """A transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = Intermediate()
        self.output = Dense(INTERMEDIATE)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, hidden] to the same shape."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """All transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map [batch, sequence, hidden] to the same shape."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class MiniLM(nn.Module):
    """The encoder: input_ids and attention_mask [batch, sequence] to last_hidden_state [batch, sequence, 384].

    Its state dict has the same names as a BertModel of transformers without pooler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map ids and mask [batch, sequence] to [batch, sequence, hidden]."""
        # True where a position (axis 2) may attend to another (axis 3): the same mask as in transformers 5.
        mask = attention_mask.bool()[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1)
        return self.encoder(self.embeddings(input_ids), mask)


def minilm() -> nn.Module:
    """The encoder, untrained."""
    return MiniLM()


@functools.cache
def _vocabulary() -> dict[str, int]:
    return {word: number for number, word in enumerate(VOCABULARY_FILE.read_text(encoding="utf-8").splitlines())}


def tokens(text: str) -> list[int]:
    """WordPiece ids of `text`, lower-cased and without accents, as BERT's uncased tokeniser gives them."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    ids: list[int] = []
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        ids += _pieces(word)
    return ids


def _pieces(word: str) -> list[int]:
    """Split `word` into the longest pieces of the vocabulary, from the left."""
    known = _vocabulary()
    found: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in known), start)
        if end == start:
            return [UNKNOWN]
        found.append(known[prefix + word[start:end]])
        start = end
    return found


@functools.cache
def _passages(length: int) -> Integers:
    """Passages [n, length] of token ids from Python's reference manual, with BERT's begin and end tokens."""
    from pydoc_data.topics import topics

    rows = []
    for name in sorted(topics):
        ids = tokens(topics[name])
        for start in range(0, len(ids) - length + 2, length - 2):
            rows.append([BEGIN, *ids[start : start + length - 2], END])
    unique = np.unique(np.array(rows, dtype=np.int64), axis=0)
    return unique[np.random.default_rng(0).permutation(len(unique))]


def samples(split: str) -> Arrays:
    """input_ids and attention_mask [n, 64] int64: real text, without padding."""
    rows = _passages(LENGTH)
    ids = rows[:64] if split == "calibration" else rows[64:128]
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def cases(sizes: dict[str, int], rng: np.random.Generator) -> Arrays:
    """Random tokens, with masks of a random number of ones at the start of each row, as with padding."""
    shape = (sizes["batch"], sizes["sequence"])
    lengths = rng.integers(1, shape[1], size=(shape[0], 1), endpoint=True)
    return {
        "input_ids": rng.integers(1000, VOCABULARY, shape),
        "attention_mask": (np.arange(shape[1]) < lengths).astype(np.int64),
    }
