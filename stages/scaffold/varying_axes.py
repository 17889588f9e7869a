"""Which axes of a module's inputs vary, and which of them together: found by running it at other sizes.

Running is more robust than torch.export with dynamic shapes: it works for every module that runs at all, and for
branches that an exporter cannot follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

# An axis of an input.
Place = tuple[str, int]
Group = tuple[Place, ...]
# Whether the module runs where the places of a group have another size.
Accepts = Callable[[Group, int], bool]


def varying_groups(
    shapes: Mapping[str, Sequence[int]], accepts: Accepts, fixed: Collection[Place] = ()
) -> list[tuple[Group, int]]:
    """Groups of axes that vary together, each of which is one dimension, with a size that the module accepts.

    Axes of one size are tried together: first all that are axis 0, which is the batch, then each alone, in pairs, and
    all that are left.

    Args:
        shapes: shapes of the example, by input.
        accepts: whether the module runs with a group of axes at another size.
        fixed: places that vary with others only.
    """
    places = [(name, axis) for name, shape in shapes.items() for axis in range(len(shape))]
    places.sort(key=lambda place: place[1] != 0)
    by_size: dict[int, list[Place]] = {}
    for place in places:
        by_size.setdefault(shapes[place[0]][place[1]], []).append(place)
    found = []
    for size, rest in by_size.items():
        for candidate in _batches(rest):
            if (other := _accepted(candidate, size, accepts)) is not None:
                found.append((candidate, other))
                rest = [place for place in rest if place not in candidate]
        while rest:
            for candidate in _candidates(rest, size):
                if set(candidate) <= set(fixed):
                    continue
                if (other := _accepted(candidate, size, accepts)) is not None:
                    found.append((candidate, other))
                    rest = [place for place in rest if place not in candidate]
                    break
            else:
                rest = rest[1:]
    order = {place: number for number, place in enumerate(places)}
    return sorted(found, key=lambda item: min(order[place] for place in item[0]))


def other_sizes(size: int) -> list[int]:
    """Sizes to try in place of `size`, neither 1 nor 0: at size 1, tensors broadcast that have to agree."""
    return {1: [2, 3], 2: [3]}.get(size, [size - 1])


def _batches(places: Sequence[Place]) -> Iterator[Group]:
    first = tuple(place for place in places if place[1] == 0)
    if first:
        yield first


def _candidates(places: Sequence[Place], size: int) -> Iterator[Group]:
    """Groups with the first of `places`, the likeliest first."""
    start, *others = places
    if size == 1:
        yield tuple(places)  # each alone would broadcast to the others
    yield (start,)
    for other in others:
        yield start, other
    yield tuple(places)


def _accepted(group: Group, size: int, accepts: Accepts) -> int | None:
    """A size at which the module accepts a group, None where it refuses one of those tried."""
    tried = other_sizes(size)
    is_batch = any(axis == 0 for _, axis in group)
    if is_batch and size > 1:
        tried = list(dict.fromkeys([*tried, size + 1]))
    return tried[-1] if all(accepts(group, other) for other in tried) else None


def smallest_size(size: int, accepts: Callable[[int], bool]) -> int:
    """The smallest size that a dimension accepts: 1, or the first power of two that works; `size` where none does."""
    powers = itertools.takewhile(lambda power: power < size, (2**n for n in itertools.count()))
    return next((power for power in powers if accepts(power)), size)
