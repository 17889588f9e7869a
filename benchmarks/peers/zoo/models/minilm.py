"""all-MiniLM-L6-v2 with its mean pooling: sentences to embeddings of length 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import BertModel

from models import inputs  # type: ignore[attr-defined]  # benchmarks/zoo.py copies both into one project

Arrays = dict[str, npt.NDArray[np.float32]]
Integers = dict[str, npt.NDArray[np.int64]]
FOLDER = Path(__file__).parent.parent / "weights" / "minilm"
LENGTH = 32


class Embedder(torch.nn.Module):
    """BERT, and the mean of its last states over the words."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Map ids and mask [batch, sequence] to [batch, 384]."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def build() -> torch.nn.Module:
    """The pretrained model."""
    return Embedder(BertModel.from_pretrained(FOLDER))


def samples(split: str) -> Integers:
    """Sentences, [256, 32]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    rows = tokenizer.encode_batch(inputs.sentences(split, 256))
    return {
        "input_ids": np.array([row.ids for row in rows], np.int64),
        "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
    }


def cases(sizes: dict[str, int], rng: np.random.Generator) -> Integers:
    """Random ids with a random number of words in each row."""
    shape = (sizes["batch"], sizes["sequence"])
    lengths = rng.integers(1, shape[1], (shape[0], 1), endpoint=True)
    mask = (np.arange(shape[1]) < lengths).astype(np.int64)
    return {"input_ids": rng.integers(1000, 30522, shape) * mask, "attention_mask": mask}


def changed(original: Arrays, released: Arrays) -> float:
    """The share of sentences whose nearest sentence changes to one that the original ranks clearly lower.

    Embeddings of the released version search among those of the released version. A neighbour counts as the same if
    the original's cosine to it is within 0.01 of the original's best.
    """
    own = original["embedding"] @ original["embedding"].T
    new = released["embedding"] @ released["embedding"].T
    for cosines in (own, new):
        np.fill_diagonal(cosines, -2)
    found = np.take_along_axis(own, new.argmax(1)[:, None], axis=1)[:, 0]
    return float(np.mean(found < own.max(1) - 0.01))
