"""Which integer inputs of a module select rows of an embedding: that gives their valid range."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional


@contextmanager
def embedding_rows(inputs: Mapping[str, torch.Tensor], rows: dict[str, int]) -> Iterator[None]:
    """Note which inputs reach an embedding unchanged while this block runs a module.

    Args:
        inputs: the tensors by input, of which the module gets copies.
        rows: gets the number of rows of the smallest such embedding, by input.
    """
    originals = {name: getattr(functional, name) for name in ("embedding", "embedding_bag")}

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def embed(index: torch.Tensor, weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            for name, value in inputs.items():
                if _is_input(index, value):
                    rows[name] = min(len(weight), rows.get(name, len(weight)))
            return original(index, weight, *args, **kwargs)

        return embed

    for name, original in originals.items():
        setattr(functional, name, noting(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(functional, name, original)


def _is_input(index: Any, value: torch.Tensor) -> bool:
    """Whether an index has an input's values. Equal values throughout say nothing: a mask of ones has them, too."""
    if not isinstance(index, torch.Tensor) or value.is_floating_point() or index.numel() != value.numel():
        return False
    given, wanted = index.reshape(-1).to(torch.int64), value.reshape(-1).to(torch.int64)
    return bool((given == wanted).all()) and bool((given != given[0]).any())
