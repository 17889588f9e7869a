"""At which sizes to feed a model: typical ones, the corners of what is declared, and primes that no exporter saw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from onward.stages.config.schema import Dim

Sizes = dict[str, int]


def size_key(sizes: Mapping[str, int]) -> str:
    """`b1` or `b8_s128`: each dimension by the shortest prefix that tells it from the others."""

    def prefix(name: str) -> str:
        others = [other for other in sizes if other != name]
        lengths = (n for n in range(1, len(name)) if not any(other[:n] == name[:n] for other in others))
        return name[: next(lengths, len(name))]

    return "_".join(f"{prefix(name)}{size}" for name, size in sizes.items()) or "fixed"


def typical_sizes(dims: Mapping[str, Dim]) -> list[Sizes]:
    """Every combination of the typical sizes, in the order of params.yaml."""
    names = list(dims)
    return [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*(dims[n].typical for n in names))]


def example_sizes(dims: Mapping[str, Dim]) -> Sizes:
    """A size for each dimension to export with: 2 or more, for the exporter takes 0 and 1 to be fixed, and no two
    alike where that can be had, or it may take two dimensions to be one."""
    return _distinct(dims, lambda _, size: size >= 2)


def prime_sizes(dims: Mapping[str, Dim]) -> Sizes:
    """For each dimension a prime of 3 or more that is neither typical nor what the exporter was given, no two alike
    where that can be had; where there is none, a size as near to that as the dimension allows."""
    seen = example_sizes(dims)
    return _distinct(
        dims, lambda name, size: size >= 3 and is_prime(size) and size != seen[name] and size not in dims[name].typical
    )


def corner_sizes(dims: Mapping[str, Dim]) -> Iterator[tuple[str, Sizes]]:
    """(label, sizes): all dimensions at their minimum, at their maximum and at primes, then each alone at its minimum
    and its maximum beside typical ones. No sizes come twice, and no typical ones."""
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
    """By trial division: dimensions are small."""
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _distinct(dims: Mapping[str, Dim], fits: Callable[[str, int], bool]) -> Sizes:
    sizes: Sizes = {}
    for name, dim in dims.items():
        within = range(dim.min, dim.max + 1)
        fitting = list(itertools.islice((size for size in within if fits(name, size)), len(dims) + 1))
        free = [size for size in fitting if size not in sizes.values()]
        sizes[name] = (free or fitting or [max(dim.min, min(dim.max, 2))])[0]
    return sizes
