"""What to feed: from the declared inputs and dimensions, named and seeded cases that can each be fed again alone.

Random draws alone mislead: a branch that depends on values, a mask that was lost, a size that was frozen show up at
zeros, at negated samples, with half of a mask off, at a size that the exporter never saw. So all of these are fed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.stages.config.schema import Dim, Input, suggestion
from onward.stages.parity.sizes import Sizes, corner_sizes, prime_sizes, size_key, typical_sizes
from onward.stages.workers import jitter

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Generator = Callable[[dict[str, int], np.random.Generator], Tensors]
Fill = Callable[[Input, Array, np.random.Generator], Array]

# Magnitudes far from those that a model is trained on. A float16 ends at 65504, and its sums must fit, too.
LARGE = {"float16": 1e2, "float32": 1e6, "float64": 1e6}
SMALL = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-6}


@dataclass(frozen=True)
class Case:
    """Inputs by name, and how they came about: `name` and `seed` are enough to make them again. A `probe` feeds what
    the model was not declared to take: it informs, and fails nothing. A `degenerate` case has equal values throughout:
    where they tie, the original may have no answer of its own, so that it is asked first. The values of a `made_up`
    case follow from params.yaml alone, which may not say all: the original may refuse them."""

    name: str
    seed: int
    sizes: Sizes
    inputs: Tensors
    probe: bool = False
    degenerate: bool = False
    made_up: bool = True


def draw(
    inputs: Mapping[str, Input], sizes: Mapping[str, int], rng: np.random.Generator, how: str = "normal"
) -> Tensors:
    """Independent draws for each input: standard normal or uniform in [-1, 1] for floats (within `range`, where they
    have one), uniform over `range` for integers, coins for booleans."""
    drawn: Tensors = {}
    for name, spec in inputs.items():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        dtype = np.dtype(spec.dtype)
        if dtype == np.bool_:
            drawn[name] = rng.integers(0, 2, shape).astype(dtype)
        elif spec.range is not None and not spec.is_float:
            low, high = (int(end) for end in spec.range)
            drawn[name] = rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
        elif how == "uniform" or spec.range is not None:
            drawn[name] = rng.uniform(*(spec.range or (-1.0, 1.0)), shape).astype(dtype)
        else:
            drawn[name] = rng.standard_normal(shape).astype(dtype)
    return drawn


class Source:
    """Where a model's tensors come from: its own `cases` where it has them, else independent draws."""

    def __init__(self, inputs: Mapping[str, Input], custom: Generator | None = None) -> None:
        self.inputs = inputs
        self.custom = custom

    def tensors(self, sizes: Sizes, rng: np.random.Generator, how: str = "normal") -> Tensors:
        """Valid inputs of these sizes.

        Raises:
            UsageError: the model's own `cases` gives other inputs, shapes or dtypes than are declared.
        """
        if self.custom is None:
            return draw(self.inputs, sizes, rng, how)
        given = {key: np.asarray(value) for key, value in self.custom(dict(sizes), rng).items()}
        if set(given) != set(self.inputs):
            raise UsageError(f"cases: gives inputs {sorted(given)}, params.yaml declares {sorted(self.inputs)}")
        for name, spec in self.inputs.items():
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
            if given[name].shape != shape or given[name].dtype != np.dtype(spec.dtype):
                raise UsageError(
                    f"cases: gives {name} as {given[name].dtype} {list(given[name].shape)} at {dict(sizes)}; "
                    f"params.yaml declares {spec.dtype} {list(shape)}"
                )
        return {key: given[key] for key in self.inputs}


def all_cases(
    inputs: Mapping[str, Input],
    dims: Mapping[str, Dim],
    draws: int,
    seed: int,
    custom: Generator | None = None,
    samples: Mapping[str, Array] | None = None,
    limit: int = 64,
) -> Iterator[Case]:
    """Every case of a model, the probes last, each independent of those before it.

    `draws` normal and as many uniform draws over the typical sizes (at least one normal draw a size), one at each
    corner of the declared sizes, fills at prime sizes, `limit` real samples, and these negated and scaled.
    """
    source = Source(inputs, custom)
    typical = typical_sizes(dims)
    prime = prime_sizes(dims)
    for i in range(max(draws, len(typical))):
        yield _drawn(source, f"normal{i}", typical[i % len(typical)], seed)
    if any(spec.is_float for spec in inputs.values()):
        for i in range(draws):
            yield _drawn(source, f"uniform{i}", typical[i % len(typical)], seed, "uniform")
    for label, sizes in corner_sizes(dims):
        yield _drawn(source, label, sizes, seed)
    if samples is not None:
        yield from sample_cases(inputs, dims, samples, limit)
    probes = []
    for label, fits, fill in _FILLS:
        if any(fits(spec) for spec in inputs.values()):
            # A model's own `cases` say how its inputs hang together; an integer that is set alone may break that.
            probe = custom is not None and fits is not _is_float
            made = _filled(source, label, prime, seed, fits, fill, probe)
            if probe:
                probes.append(made)
            else:
                yield made
    yield from probes
    yield from _probes(source, dims, prime, seed)


def jittered(case: Case) -> Tensors:
    """The inputs of a case with every float moved by about a millionth: what no answer may depend on."""
    rng = np.random.default_rng(case.seed)
    moved = {}
    for name, value in case.inputs.items():
        noise = rng.uniform(-1, 1, value.shape) * (1e-6 * np.abs(value) + 1e-7) if value.dtype.kind == "f" else 0
        moved[name] = (value + noise).astype(value.dtype)
    return moved


def shaken(case: Case, seed: int) -> Tensors:
    """The inputs of a case with every float moved by one unit in the last place, up or down at random.

    Whole numbers stay. They may be categories or counts, and the next float would be another category.
    """
    rng = np.random.default_rng([case.seed, seed])
    moved = {}
    for name, value in case.inputs.items():
        moved[name] = jitter.moved(value, rng) if value.dtype.kind == "f" else value
    return moved


def resized(inputs: Mapping[str, Input], samples: Mapping[str, Array], sizes: Mapping[str, int]) -> Tensors:
    """Real samples cut, or repeated, to other sizes: what the original should take if it takes these sizes at all."""
    made = {}
    for name, spec in inputs.items():
        value = samples[name]
        for axis, size in enumerate(spec.shape):
            wanted = sizes[size] if isinstance(size, str) else size
            value = np.take(value, np.arange(wanted) % max(1, value.shape[axis]), axis=axis)
        made[name] = value
    return made


def find(cases: Iterable[Case], name: str) -> Case:
    """The case of this name.

    Raises:
        UsageError: there is none.
    """
    names = []
    for case in cases:
        if case.name == name:
            return case
        names.append(case.name)
    raise UsageError(f"there is no case {name!r}{suggestion(name, names)}; the cases are {', '.join(names)}")


def sample_cases(
    inputs: Mapping[str, Input], dims: Mapping[str, Dim], samples: Mapping[str, Array], limit: int
) -> Iterator[Case]:
    """Real samples, `limit` at most, in batches as large as the first dimension may be; the first batch again with
    its floats negated, ten times as large and a tenth as large."""
    first = next(iter(inputs.values())).shape[0]
    least, step = (dims[first].min, dims[first].max) if isinstance(first, str) else (first, first)
    count = min(limit, len(next(iter(samples.values()))))
    for start in range(0, count, step):
        batch = {name: samples[name][start : min(start + step, count)] for name in inputs}
        size = len(next(iter(batch.values())))
        if size < least:
            return  # a remainder that is no batch
        sizes = _sizes(inputs, batch)
        yield Case(f"samples{start}@{size}", 0, sizes, batch, made_up=False)
        if start == 0 and any(spec.is_float for spec in inputs.values()):
            for label, factor in (("negated", -1.0), ("enlarged", 10.0), ("reduced", 0.1)):
                scaled = {
                    name: _within(spec, batch[name] * batch[name].dtype.type(factor)) if spec.is_float else batch[name]
                    for name, spec in inputs.items()
                }
                yield Case(f"{label}@{size}", 0, sizes, scaled)


def _drawn(source: Source, label: str, sizes: Sizes, seed: int, how: str = "normal", probe: bool = False) -> Case:
    name = f"{label}@{size_key(sizes)}"
    own = zlib.crc32(f"{seed}/{name}".encode())
    tensors = source.tensors(sizes, np.random.default_rng(own), how)
    return Case(name, own, dict(sizes), tensors, probe, made_up=source.custom is None)


def _filled(
    source: Source, label: str, sizes: Sizes, seed: int, fits: Callable[[Input], bool], fill: Fill, probe: bool
) -> Case:
    """A draw in which every input that fits is filled."""
    case = replace(_drawn(source, label, sizes, seed, probe=probe), degenerate=fits is _is_float, made_up=True)
    rng = np.random.default_rng(case.seed + 1)
    for name, spec in source.inputs.items():
        if fits(spec):
            filled = fill(spec, case.inputs[name], rng)
            case.inputs[name] = _within(spec, filled.astype(case.inputs[name].dtype))
    return case


def _probes(source: Source, dims: Mapping[str, Dim], prime: Sizes, seed: int) -> Iterator[Case]:
    """What was not declared: a NaN, an infinity, and, last, for it may take the process down, an empty batch."""
    if any(spec.is_float for spec in source.inputs.values()):
        for label, value in (("nan", np.nan), ("infinity", np.inf)):
            case = _drawn(source, label, prime, seed, probe=True)
            for name, spec in source.inputs.items():
                if spec.is_float and case.inputs[name].size:
                    case.inputs[name].flat[0] = value
            yield case
    first = next(iter(source.inputs.values())).shape[0]
    if isinstance(first, str) and dims[first].min > 0:
        yield _drawn(source, "empty", {**typical_sizes(dims)[0], first: 0}, seed, probe=True)


def _is_float(spec: Input) -> bool:
    return spec.is_float


def _is_mask(spec: Input) -> bool:
    return spec.is_mask


def _is_ranged(spec: Input) -> bool:
    return not spec.is_float and not spec.is_mask and spec.range is not None


def _constant(value: float) -> Fill:
    return lambda spec, drawn, rng: np.full(drawn.shape, value)


def _end(index: int) -> Fill:
    return lambda spec, drawn, rng: np.full(drawn.shape, spec.range[index] if spec.range else 0)


def _span(spec: Input, drawn: Array, rng: np.random.Generator) -> Array:
    """The whole range, both ends included, in random order."""
    assert spec.range is not None
    values = np.round(np.linspace(spec.range[0], spec.range[1], drawn.size)).astype(np.int64)
    if drawn.size == 1:
        values[:] = spec.range[1]
    return rng.permutation(values).reshape(drawn.shape)


def _ragged(spec: Input, drawn: Array, rng: np.random.Generator) -> Array:
    """On from the start of each row to somewhere in it, as padding leaves it; on and off in turn where that is all of
    one length."""
    length = drawn.shape[-1]
    lengths = rng.integers(1, length, size=(*drawn.shape[:-1], 1), endpoint=True) if length else np.zeros(1)
    rows = np.arange(length) < lengths
    return rows if not rows.all() else np.arange(drawn.size).reshape(drawn.shape) % 2 == 0


# Labels, which inputs they fill, and with what. Inputs that do not fit keep their draw.
_FILLS: list[tuple[str, Callable[[Input], bool], Fill]] = [
    ("zeros", _is_float, _constant(0.0)),
    ("ones", _is_float, _constant(1.0)),
    ("minus-ones", _is_float, _constant(-1.0)),
    ("constant", _is_float, lambda spec, drawn, rng: np.full(drawn.shape, rng.uniform(-2, 2))),
    ("large", _is_float, lambda spec, drawn, rng: drawn * drawn.dtype.type(LARGE[spec.dtype])),
    ("small", _is_float, lambda spec, drawn, rng: drawn * drawn.dtype.type(SMALL[spec.dtype])),
    ("lowest", _is_ranged, _end(0)),
    ("highest", _is_ranged, _end(1)),
    ("span", _is_ranged, _span),
    ("masks-on", _is_mask, _constant(1)),
    ("masks-off", _is_mask, _constant(0)),
    ("masks-ragged", _is_mask, _ragged),
]


def _within(spec: Input, values: Array) -> Array:
    """Clipped to the declared range, where a float has one."""
    if spec.range is None or not spec.is_float:
        return values
    return np.clip(values, *spec.range).astype(values.dtype)


def _sizes(inputs: Mapping[str, Input], tensors: Mapping[str, Array]) -> Sizes:
    return {
        axis: int(tensors[name].shape[position])
        for name, spec in inputs.items()
        for position, axis in enumerate(spec.shape)
        if isinstance(axis, str)
    }
