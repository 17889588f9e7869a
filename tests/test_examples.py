"""The examples of docs/add-your-model.md: each passes verification as it is printed."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.test_docs import blocks
from tests.toy import STAGES, one

PAGE = "docs/add-your-model.md"
FILES = re.findall(r"`models/(\w+)\.py`:", (Path(__file__).parents[1] / PAGE).read_text())


def transformer(folder: Path) -> None:
    """What `save_pretrained` writes, for a model and a vocabulary of a hundred words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["a", "model", "computes", "vectors", "of", "the", "are", "numbers"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(str(number) for number in range(8))]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize("number", range(1, 5))
def test_an_example_passes_as_printed(project: Path, number: int) -> None:
    source, entry = blocks(PAGE, "python")[number], blocks(PAGE, "yaml")[number]
    (project / "models" / f"{FILES[number]}.py").write_text(source)
    models = yaml.safe_load(textwrap.dedent(entry))
    name = next(iter(models))
    if name == "sentences":
        transformer(project / "models" / "sentences")
    (project / "params.yaml").write_text(yaml.safe_dump({"models": models}, sort_keys=False))
    for stage in ("train", "data", "export", "verify"):
        report = one(stage, name, STAGES[stage])
        assert report.status == "passed", f"{stage}: {report.reason}"
