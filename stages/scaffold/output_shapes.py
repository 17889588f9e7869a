"""Output shapes in terms of the dimensions of the inputs, from runs at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onward.stages.scaffold.found_model import FoundShape


@dataclass(frozen=True)
class Run:
    """One run of a model: the size of each dimension, and the shapes of the outputs by name."""

    sizes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


def described_shape(output: str, runs: Sequence[Run]) -> FoundShape | None:
    """Describe the shape of an output.

    An axis is a size where no run changes it, or the dimension that has the same size in all runs, else None.

    Returns:
        None in place of the shape where the number of axes changes, or where there are no runs.
    """
    shapes = [run.shapes[output] for run in runs if output in run.shapes]
    if not runs or len(shapes) != len(runs) or len({len(shape) for shape in shapes}) != 1:
        return None
    return tuple(_axis([shape[axis] for shape in shapes], runs) for axis in range(len(shapes[0])))


def _axis(seen: list[int], runs: Sequence[Run]) -> int | str | None:
    if len(set(seen)) == 1 and seen[0] > 0:
        return seen[0]
    same = (name for name in runs[0].sizes if [run.sizes[name] for run in runs] == seen)
    return next(same, None)


def unknown_axes(output: str, shape: FoundShape | None, runs: Sequence[Run]) -> str:
    """What is unknown about the shape of an output, with the sizes that were seen; empty where all is known."""
    if shape is None:
        return "its number of axes is unknown"
    words = []
    for axis, size in enumerate(shape):
        if size is None:
            seen = [str(run.shapes[output][axis]) for run in runs if len(run.shapes.get(output, ())) == len(shape)]
            words.append(f"axis {axis} is no dimension of an input" + (f" (seen: {', '.join(seen)})" if seen else ""))
    return "; ".join(words)
