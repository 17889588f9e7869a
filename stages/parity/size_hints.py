"""Finds the line of params.yaml that would declare a model's sizes correctly, from how the model behaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from onward.registry.evidence import size_expressions
from onward.stages.config.schema import Dim
from onward.stages.parity.sizes import Sizes, typical_sizes

# The number of sizes of a dimension to try, from the smallest on: three multiples of 16.
TRIED = 48
# The factors and summands of the expressions to try.
FACTORS = (2, 3, 4, 5, 8, 16, 32)
SUMMANDS = (1, 2, 3, 4)


def multiples(accepts: Callable[[Sizes], bool], dims: Mapping[str, Dim]) -> list[str]:
    """Find the dimensions whose sizes must be multiples of a number.

    Args:
        accepts: Whether the original runs at certain sizes.
        dims: The inputs' own dimensions.

    Returns:
        One line for params.yaml per such dimension.
    """
    found = []
    for name, dim in dims.items():
        if not dim.varies or not dim.typical:
            continue
        sizes = list(itertools.islice((size for size in dim.sizes if size > 0), TRIED))
        # A dimension may be refused because of the typical size of another one: any typical size will do.
        others = next((other for other in typical_sizes(dims) if accepts(other)), None)
        if others is None:
            return []
        taken = [size for size in sizes if accepts({**others, name: size})]
        factor = _divisor(sizes, taken)
        if factor:
            low = next(size for size in itertools.count(max(dim.min, 1)) if size % factor == 0)
            typical = [size for size in dim.typical if size % factor == 0]
            found.append(
                f"dims: {{{name}: {{min: {low}, max: {dim.max - dim.max % factor}, typical: {typical}, "
                f"multiple_of: {factor}}}}}"
            )
    return found


def _divisor(sizes: Sequence[int], taken: Sequence[int]) -> int:
    """The number that divides exactly the sizes that were taken; 0 if there is none."""
    if len(taken) < 2 or len(taken) == len(sizes):
        return 0
    factor = taken[1] - taken[0]
    return factor if taken == [size for size in sizes if size % factor == 0] else 0


def expression(observed: Sequence[tuple[Mapping[str, int], int]]) -> str:
    """Find a simple expression of the inputs' sizes that gives the observed sizes of an output.

    Args:
        observed: The sizes of the inputs' dimensions in each case, and the size of the output.

    Returns:
        The expression; empty if none fits, or fewer than three different sizes were observed.
    """
    if len({size for _, size in observed}) < 3:
        return ""
    for text in _candidates(observed[0][0]):
        if all(size_expressions.value(text, sizes) == size for sizes, size in observed):
            return text
    return ""


def _candidates(names: Iterable[str]) -> Iterator[str]:
    names = list(names)
    yield from names
    for name in names:
        for number in SUMMANDS:
            yield f"{name} + {number}"
            yield f"{name} - {number}"
        for factor in FACTORS:
            yield f"{factor} * {name}"
            yield f"{name} // {factor}"
            yield f"({name} + {factor - 1}) // {factor}"
            for number in SUMMANDS:
                yield f"{factor} * {name} - {number}"
                yield f"{factor} * {name} + {number}"
                yield f"({name} - {number}) // {factor} + 1"
    for one, other in itertools.combinations(names, 2):
        yield f"{one} + {other}"
        yield f"{one} * {other}"
        for factor in FACTORS:
            yield f"{one} // {factor} * ({other} // {factor})"
