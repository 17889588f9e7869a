"""The sizes to test a model at: typical ones, the corners of the declared range, and primes that no exporter saw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from onward.stages.config.layout import shape_of
from onward.stages.config.schema import Dim, ModelParams

Sizes = dict[str, int]


def size_key(sizes: Mapping[str, int]) -> str:
    """A short text for sizes, such as `b1` or `b8_s128`.

    Each dimension is named by the shortest prefix that no other dimension shares.
    """

    def prefix(name: str) -> str:
        others = [other for other in sizes if other != name]
        lengths = (
            length for length in range(1, len(name)) if not any(other[:length] == name[:length] for other in others)
        )
        return name[: next(lengths, len(name))]

    return "_".join(f"{prefix(name)}{size}" for name, size in sizes.items()) or "fixed"


def typical_sizes(dims: Mapping[str, Dim]) -> list[Sizes]:
    """Every combination of the typical sizes, in the order of params.yaml."""
    combinations = itertools.product(*(dim.typical for dim in dims.values()))
    return [dict(zip(dims, sizes, strict=True)) for sizes in combinations]


def typical_shapes(settings: ModelParams) -> dict[str, list[int | None]]:
    """The shape of each input at the last typical sizes; None for a size that they do not determine."""
    sizes = typical_sizes(settings.free_dims)[-1]
    return {name: shape_of(spec.shape, sizes) for name, spec in settings.inputs.items()}


def size_weight(dims: Mapping[str, Dim], sizes: Mapping[str, int]) -> float:
    """The weight of a combination of typical sizes in means over sizes: the product of its sizes' weights."""
    return math.prod(dims[name].weight(size) for name, size in sizes.items() if name in dims)


def example_sizes(dims: Mapping[str, Dim]) -> Sizes:
    """The sizes of the example for the exporter.

    Each is 2 or more, because torch.export treats 0 and 1 as fixed sizes. All differ if possible, because it may treat
    two dimensions of the same size as one.
    """
    return _distinct(dims, lambda name, size: size // dims[name].multiple_of >= 2)


def prime_sizes(dims: Mapping[str, Dim]) -> Sizes:
    """For each dimension a prime of 3 or more that is neither typical nor in the exporter's example.

    All differ if possible. A dimension whose sizes are multiples of a number gets a prime times that number. A
    dimension that allows no such size gets another valid size.
    """
    seen = example_sizes(dims)

    def fits(name: str, size: int) -> bool:
        factor = size // dims[name].multiple_of
        return factor >= 3 and is_prime(factor) and size != seen[name] and size not in dims[name].typical

    return _distinct(dims, fits)


def corner_sizes(dims: Mapping[str, Dim]) -> Iterator[tuple[str, Sizes]]:
    """Generate the corners of the declared sizes.

    First all dimensions are at their minimum, their maximum and at primes. Then each dimension in turn is at its
    minimum and its maximum, with the others at a typical size.

    Returns:
        (label, sizes) of each corner, without typical sizes and repetitions.
    """
    typical = typical_sizes(dims)
    first = typical[0]
    wanted = [
        ("minimum", {name: dim.min for name, dim in dims.items()}),
        ("maximum", {name: dim.max for name, dim in dims.items()}),
        ("prime", prime_sizes(dims)),
    ]
    for name, dim in dims.items():
        wanted += [(f"{name}-minimum", {**first, name: dim.min}), (f"{name}-maximum", {**first, name: dim.max})]
    known = list(typical)
    for label, sizes in wanted:
        if sizes not in known:
            known.append(sizes)
            yield label, sizes


def is_prime(number: int) -> bool:
    """Whether a number is prime, by trial division, which is fast enough for dimensions."""
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _distinct(dims: Mapping[str, Dim], fits: Callable[[str, int], bool]) -> Sizes:
    sizes: Sizes = {}
    for name, dim in dims.items():
        fitting = list(itertools.islice((size for size in dim.sizes if fits(name, size)), len(dims) + 1))
        free = [size for size in fitting if size not in sizes.values()]
        sizes[name] = (free or fitting or [next((size for size in dim.sizes if size >= 2), dim.max)])[0]
    return sizes
