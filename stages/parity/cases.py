"""What to feed: from the declared inputs and dimensions, named and seeded cases that can each be fed again alone."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError
from stages.settings import Dim, Input

Array = npt.NDArray[np.generic]
Generator = Callable[[dict[str, int], np.random.Generator], dict[str, Array]]


@dataclass(frozen=True)
class Case:
    """Inputs by name, and how they came about: `name` and `seed` are enough to make them again."""

    name: str
    seed: int
    sizes: dict[str, int]
    inputs: dict[str, Array]


def size_key(sizes: Mapping[str, int]) -> str:
    """`b1` or `b8_s128`: each dimension by the shortest prefix that tells it from the others."""

    def prefix(name: str) -> str:
        others = [other for other in sizes if other != name]
        lengths = (n for n in range(1, len(name)) if not any(other[:n] == name[:n] for other in others))
        return name[: next(lengths, len(name))]

    return "_".join(f"{prefix(name)}{size}" for name, size in sizes.items()) or "fixed"


def typical_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Every combination of the typical sizes, in the order of params.yaml."""
    names = list(dims)
    return [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*(dims[n].typical for n in names))]


def extreme_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Every dimension at its minimum (1 where that is 0), and every dimension at its maximum."""
    return [{n: max(1, d.min) for n, d in dims.items()}, {n: d.max for n, d in dims.items()}]


def draw(inputs: Mapping[str, Input], sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
    """Independent draws for each input: standard normal, or uniform over the declared range for integers."""
    drawn: dict[str, Array] = {}
    for name, spec in inputs.items():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        dtype = np.dtype(spec.dtype)
        if dtype == np.bool_:
            drawn[name] = rng.integers(0, 2, shape).astype(dtype)
        elif spec.range is not None:
            low, high = spec.range
            drawn[name] = rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
        else:
            drawn[name] = rng.standard_normal(shape).astype(dtype)
    return drawn


def random_cases(
    inputs: Mapping[str, Input], dims: Mapping[str, Dim], draws: int, seed: int, custom: Generator | None = None
) -> Iterator[Case]:
    """Seeded draws: `draws` of them spread over the typical sizes, at least one a size, and one at each extreme.

    Raises:
        UsageError: the model's own `cases` gives other inputs than are declared.
    """
    typical = typical_sizes(dims)
    wanted = [(f"normal{i}", typical[i % len(typical)]) for i in range(max(draws, len(typical)))]
    wanted += [(f"extreme{i}", sizes) for i, sizes in enumerate(extreme_sizes(dims)) if sizes not in typical]
    for label, sizes in wanted:
        name = f"{label}@{size_key(sizes)}"
        case_seed = zlib.crc32(f"{seed}/{name}".encode())
        rng = np.random.default_rng(case_seed)
        if custom is None:
            tensors = draw(inputs, sizes, rng)
        else:
            tensors = {key: np.asarray(value) for key, value in custom(dict(sizes), rng).items()}
            if set(tensors) != set(inputs):
                raise UsageError(f"cases: gives inputs {sorted(tensors)}, params.yaml declares {sorted(inputs)}")
        yield Case(name, case_seed, dict(sizes), {key: tensors[key] for key in inputs})


def sample_cases(
    inputs: Mapping[str, Input], dims: Mapping[str, Dim], samples: Mapping[str, Array], limit: int
) -> Iterator[Case]:
    """Real samples, `limit` at most, in batches as large as the first dimension may be."""
    first = next(iter(inputs.values())).shape[0]
    step = dims[first].max if isinstance(first, str) else int(first)
    count = min(limit, len(next(iter(samples.values()))))
    for start in range(0, count, step):
        batch = {name: samples[name][start : min(start + step, count)] for name in inputs}
        size = len(next(iter(batch.values())))
        if isinstance(first, int) and size < first:
            return  # a fixed batch cannot be fed in part
        yield Case(f"samples{start}@{size}", 0, _sizes(inputs, batch), batch)


def _sizes(inputs: Mapping[str, Input], tensors: Mapping[str, Array]) -> dict[str, int]:
    return {
        axis: int(tensors[name].shape[position])
        for name, spec in inputs.items()
        for position, axis in enumerate(spec.shape)
        if isinstance(axis, str)
    }
