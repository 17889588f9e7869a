"""Test cases made from the declared inputs and dimensions. Each has a name and a seed, and can be repeated alone.

Random inputs do not find every error. A branch that depends on values, a lost mask or a fixed size show up with zeros,
negated samples, partly masked rows, or a size that the exporter did not see. So there are cases for all of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.errors import UsageError
from onward.registry.evidence import size_expressions
from onward.registry.text import suggestion
from onward.stages.config.layout import (
    constant,
    in_place,
    largest_size,
    sample_dimension,
    shape_of,
    sizes_of,
    with_constants,
)
from onward.stages.config.load import resolve
from onward.stages.config.schema import Dim, Input, ModelParams
from onward.stages.parity.sequences import Sequences
from onward.stages.parity.sizes import Sizes, corner_sizes, prime_sizes, size_key, typical_sizes
from onward.stages.workers import jitter

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Generator = Callable[[dict[str, int], np.random.Generator], Tensors]
Fill = Callable[[Input, Array, np.random.Generator], Array]

# Magnitudes far from those of training data. The largest float16 is 65504, which sums must not exceed either.
LARGE = {"float16": 1e2, "float32": 1e6, "float64": 1e6}
SMALL = {"float16": 1e-3, "float32": 1e-6, "float64": 1e-6}


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes:
        name: Unique name, with the sizes after "@".
        seed: Seed of its random values; name and seed suffice to make the inputs again.
        sizes: Size of each named dimension.
        inputs: Arrays by input name.
        probe: Whether the inputs are outside of what params.yaml declares. Probes inform and fail nothing.
        degenerate: Whether the floats are all equal or of extreme magnitude. Values may tie then, and the original's
            answer may depend on their order, so its stability is checked first.
        made_up: Whether the values were generated. params.yaml may not state all constraints, so the original may
            refuse them.
        from_cases: Whether the model's own `cases` generated all of them.
        sequence: The sequences to run step by step instead of `inputs` once; None for a single step.
    """

    name: str
    seed: int
    sizes: Sizes
    inputs: Tensors
    probe: bool = False
    degenerate: bool = False
    made_up: bool = True
    from_cases: bool = False
    sequence: Sequences | None = None

    def outputs(self, run: Callable[[Tensors], Tensors]) -> Tensors:
        """Run a model on this case.

        Args:
            run: Computes the outputs of one call.

        Returns:
            Outputs by name; those of a sequence are [samples, steps, ...].
        """
        return run(self.inputs) if self.sequence is None else self.sequence.outputs(run)


def draw(
    inputs: Mapping[str, Input], sizes: Mapping[str, int], rng: np.random.Generator, how: str = "normal"
) -> Tensors:
    """Draw random values for each input, independently.

    Floats are uniform over their `range` if they have one, else standard normal or uniform over [-1, 1]. Integers are
    uniform over their `range`. Booleans are true with probability 1/2.

    Args:
        inputs: The declared inputs.
        sizes: Size of each named dimension.
        rng: Source of the random values.
        how: "normal" or "uniform".
    """
    drawn: Tensors = {}
    for name, spec in inputs.items():
        shape = _shape(spec, sizes)
        dtype = np.dtype(spec.dtype)
        if spec.is_fixed:
            drawn[name] = constant(spec, sizes)
        elif dtype == np.bool_:
            drawn[name] = np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        elif spec.range is not None and not spec.is_float:
            low, high = (int(end) for end in spec.range)
            drawn[name] = np.asarray(rng.integers(low, high, shape, dtype=np.int64, endpoint=True)).astype(dtype)
        elif how == "uniform" or spec.range is not None:
            drawn[name] = np.asarray(rng.uniform(*(spec.range or (-1.0, 1.0)), shape)).astype(dtype)
        else:
            drawn[name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return drawn


def own_cases(settings: ModelParams, key: str = "") -> Generator | None:
    """The function that `cases` names in params.yaml; None if there is none.

    It receives the sizes of all dimensions, those included that follow from others.

    Args:
        settings: The model's settings.
        key: The model's place in params.yaml, such as "models.cnn", for messages.
    """
    if settings.cases is None:
        return None
    function: Generator = resolve(settings.cases, f"{key}.cases" if key else "")
    defined = {name: dim.size for name, dim in settings.dims.items() if dim.size is not None}
    derived = {name: size_expressions.replace(text, defined) for name, text in defined.items()}

    def generate(sizes: dict[str, int], rng: np.random.Generator) -> Tensors:
        follow = {name: size_expressions.value(text, sizes) for name, text in derived.items()}
        return function({**sizes, **{name: size for name, size in follow.items() if size is not None}}, rng)

    return generate


class Source:
    """Generates valid inputs: with the model's own `cases` function if there is one, else with `draw`.

    Args:
        inputs: The declared inputs.
        custom: The function that `cases` names in params.yaml.
    """

    def __init__(self, inputs: Mapping[str, Input], custom: Generator | None = None) -> None:
        self.inputs = inputs
        self.custom = custom

    def tensors(self, sizes: Sizes, rng: np.random.Generator, how: str = "normal") -> Tensors:
        """Generate valid inputs of these sizes.

        Args:
            sizes: Size of each named dimension.
            rng: Source of the random values.
            how: As for `draw`; ignored if the model has its own `cases`.

        Raises:
            UsageError: The model's own `cases` returns other inputs, shapes or dtypes than declared.
        """
        if self.custom is None:
            return draw(self.inputs, sizes, rng, how)
        returned = {key: np.asarray(value) for key, value in self.custom(dict(sizes), rng).items()}
        returned |= {
            name: constant(spec, sizes) for name, spec in self.inputs.items() if spec.is_fixed and name not in returned
        }
        if set(returned) != set(self.inputs):
            raise UsageError(
                f"cases: returns the inputs {sorted(returned)}, params.yaml declares {sorted(self.inputs)}"
            )
        for name, spec in self.inputs.items():
            shape = _shape(spec, sizes)
            if list(returned[name].shape) != shape or returned[name].dtype != np.dtype(spec.dtype):
                raise UsageError(
                    f"cases: returns {name} as {returned[name].dtype} {list(returned[name].shape)} at {dict(sizes)}; "
                    f"params.yaml declares {spec.dtype} {shape}; a size that follows from other dimensions is declared "
                    "by an expression, such as dims: {total: past + new}"
                )
        return {key: returned[key] for key in self.inputs}


def all_cases(
    inputs: Mapping[str, Input],
    dims: Mapping[str, Dim],
    draws: int,
    seed: int,
    custom: Generator | None = None,
    samples: Mapping[str, Array] | None = None,
    limit: int = 64,
    sequences: Sequences | None = None,
) -> Iterator[Case]:
    """Generate every case of a model, the probes last. No case depends on those before it.

    There are normal and uniform draws at typical sizes (at least one normal draw per size), a draw at each corner of
    the declared sizes, real samples, the first of them negated and scaled, special values at prime sizes, and probes.

    Args:
        inputs: The declared inputs.
        dims: The inputs' own dimensions (`ModelParams.free_dims`).
        draws: Number of normal and of uniform draws.
        seed: The model's seed.
        custom: The function that `cases` names in params.yaml.
        samples: Real samples by input name, on the first axis.
        limit: Largest number of real samples to use.
        sequences: Real samples that are sequences of steps, instead of `samples`.
    """
    source = Source(inputs, custom)
    typical = typical_sizes(dims)
    prime = prime_sizes(dims)
    for number in range(max(draws, len(typical))):
        yield _drawn(source, f"normal{number}", typical[number % len(typical)], seed)
    if any(_is_float(spec) for spec in inputs.values()):
        for number in range(draws):
            yield _drawn(source, f"uniform{number}", typical[number % len(typical)], seed, "uniform")
    for label, sizes in corner_sizes(dims):
        yield _drawn(source, label, sizes, seed)
    if sequences is not None:
        yield from sequence_cases(sequences, limit)
    elif samples is not None:
        yield from sample_cases(inputs, dims, samples, limit)
    probes = []
    for label, fits, fill in _FILLS:
        if any(fits(spec) for spec in inputs.values()):
            # A model's own `cases` may relate its inputs to each other, and changing one integer may break that.
            is_probe = custom is not None and fits is not _is_float
            case = _filled(source, label, prime, seed, fits, fill, is_probe)
            if is_probe:
                probes.append(case)
            else:
                yield case
    yield from probes
    yield from _probes(source, dims, prime, seed)


def jittered(case: Case) -> Tensors:
    """The inputs of a case with every float changed by up to 1e-6 of itself plus 1e-7.

    A stable answer does not depend on such a change.
    """
    rng = np.random.default_rng(case.seed)
    moved = {}
    for name, value in case.inputs.items():
        noise = rng.uniform(-1, 1, value.shape) * (1e-6 * np.abs(value) + 1e-7) if value.dtype.kind == "f" else 0
        moved[name] = (value + noise).astype(value.dtype)
    return moved


def shaken(case: Case, seed: int) -> Case:
    """The case with every float of its inputs moved by one unit in the last place, up or down at random.

    Whole numbers stay the same. They may be categories or counts, and the next float would mean another category.

    Args:
        case: The case.
        seed: Seed of the random directions, combined with the case's own seed.
    """
    rng = np.random.default_rng([case.seed, seed])
    if case.sequence is not None:
        return replace(case, sequence=case.sequence.shaken(rng))
    moved = {name: jitter.moved(v, rng) if v.dtype.kind == "f" else v for name, v in case.inputs.items()}
    return replace(case, inputs=moved)


def resized(inputs: Mapping[str, Input], samples: Mapping[str, Array], sizes: Mapping[str, int]) -> Tensors:
    """Cut or repeat real samples to other sizes; the original should accept these if it accepts the sizes.

    Args:
        inputs: The declared inputs.
        samples: Real samples by input name, on the first axis.
        sizes: Size of each named dimension.
    """
    found = {}
    for name, spec in inputs.items():
        if spec.is_fixed:
            found[name] = constant(spec, sizes)
            continue
        value = in_place(spec, samples[name])
        for axis, size in enumerate(_shape(spec, sizes)):
            value = np.take(value, np.arange(size) % max(1, value.shape[axis]), axis=axis)
        found[name] = value
    return found


def sequence_cases(sequences: Sequences, limit: int) -> Iterator[Case]:
    """Generate cases of real sequences, which a model runs step by step on its own state.

    The first step is a case of its own, and so is the first step with floats negated, multiplied by 10 and by 0.1.

    Args:
        sequences: All sequences.
        limit: Largest number of steps, and of sequences, to use.
    """
    inputs = sequences.inputs
    stepped = next(n for n, spec in inputs.items() if spec.samples_on is not None and n not in sequences.states)
    for start, size in _batches(inputs, sequences.dims, min(limit, len(sequences.samples[stepped]))):
        part = sequences.part(start, size, limit)
        feed = part.feed(0)
        sizes = sizes_of(inputs, feed)
        yield Case(f"sequence{start}@{size}", start, sizes, feed, made_up=False, sequence=part)
        if start == 0:
            yield Case(f"samples0@{size}", 0, sizes, feed, made_up=False)
            yield from _scaled_cases(inputs, feed, size)


def _batches(inputs: Mapping[str, Input], dims: Mapping[str, Dim], count: int) -> Iterator[tuple[int, int]]:
    """The first sample and the size of batches of the largest possible size, up to a remainder that is too small."""
    first = sample_dimension(inputs)
    allowed = dims[first].sizes if isinstance(first, str) else range(first, first + 1)
    for start in range(0, count, allowed[-1]):
        size = largest_size(allowed, count - start)
        if not size:
            return
        yield start, size


def _scaled_cases(inputs: Mapping[str, Input], batch: Tensors, size: int) -> Iterator[Case]:
    """A batch with its floats negated, multiplied by 10 and by 0.1."""
    for label, factor in (("negated", -1.0), ("enlarged", 10.0), ("reduced", 0.1)):
        yield Case(f"{label}@{size}", 0, sizes_of(inputs, batch), _scaled(inputs, batch, factor))


def _scaled(inputs: Mapping[str, Input], batch: Tensors, factor: float) -> Tensors:
    """Multiply all floats that may vary by a number, within their range."""

    def of(spec: Input, values: Array) -> Array:
        return _within(spec, np.asarray(values * values.dtype.type(factor))) if _is_float(spec) else values

    return {name: of(spec, batch[name]) for name, spec in inputs.items()}


def find(cases: Iterable[Case], name: str) -> Case:
    """Find the case of this name.

    Raises:
        UsageError: There is none.
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
    """Generate cases of real samples, in batches of the largest size that the first dimension allows.

    The first batch is repeated with its floats negated, multiplied by 10 and by 0.1.

    Args:
        inputs: The declared inputs.
        dims: The declared dimensions.
        samples: Real samples by input name, on the first axis.
        limit: Largest number of samples to use.
    """
    sampled = next(name for name, spec in inputs.items() if spec.samples_on is not None)
    for start, size in _batches(inputs, dims, min(limit, len(samples[sampled]))):
        batch = feed_of(inputs, samples, start, size)
        yield Case(f"samples{start}@{size}", 0, sizes_of(inputs, batch), batch, made_up=False)
        if start == 0 and any(_is_float(spec) for spec in inputs.values()):
            yield from _scaled_cases(inputs, batch, size)


def feed_of(inputs: Mapping[str, Input], samples: Mapping[str, Array], start: int, size: int) -> Tensors:
    """The inputs of one call with real samples.

    Args:
        inputs: The declared inputs.
        samples: Real samples by input name, on axis 0; inputs without an axis of samples have one array for all.
        start: The first sample.
        size: Number of samples.

    Returns:
        Arrays by input name, in the model's own layout.
    """
    given = {
        name: samples[name] if spec.samples_on is None else in_place(spec, samples[name][start : start + size])
        for name, spec in inputs.items()
        if not spec.is_fixed
    }
    return with_constants(inputs, given)


def _shape(spec: Input, sizes: Mapping[str, int]) -> list[int]:
    """The shape of an input.

    Raises:
        UsageError: The sizes do not determine it.
    """
    found = shape_of(spec.shape, sizes)
    for axis, size in zip(spec.shape, found, strict=True):
        if size is None or size < 0:
            raise UsageError(
                f"params.yaml: the size {axis!r} of an input is no whole number at {dict(sizes)}: declare multiple_of "
                "for the dimension that it divides, or round down with //"
            )
    return [size or 0 for size in found]


def _drawn(source: Source, label: str, sizes: Sizes, seed: int, how: str = "normal", probe: bool = False) -> Case:
    name = f"{label}@{size_key(sizes)}"
    case_seed = zlib.crc32(f"{seed}/{name}".encode())
    tensors = source.tensors(sizes, np.random.default_rng(case_seed), how)
    return Case(name, case_seed, dict(sizes), tensors, probe, from_cases=source.custom is not None)


def _filled(
    source: Source, label: str, sizes: Sizes, seed: int, fits: Callable[[Input], bool], fill: Fill, probe: bool
) -> Case:
    """A random case in which `fill` replaces every input that `fits`."""
    case = replace(_drawn(source, label, sizes, seed, probe=probe), degenerate=fits is _is_float, from_cases=False)
    rng = np.random.default_rng(case.seed + 1)
    for name, spec in source.inputs.items():
        if fits(spec):
            filled = fill(spec, case.inputs[name], rng)
            case.inputs[name] = _within(spec, filled.astype(case.inputs[name].dtype))
    return case


def _probes(source: Source, dims: Mapping[str, Dim], prime: Sizes, seed: int) -> Iterator[Case]:
    """Undeclared inputs: a NaN, an infinity and, last because it may end the process, an empty batch."""
    if any(_is_float(spec) for spec in source.inputs.values()):
        for label, value in (("nan", np.nan), ("infinity", np.inf)):
            case = _drawn(source, label, prime, seed, probe=True)
            for name, spec in source.inputs.items():
                if _is_float(spec) and case.inputs[name].size:
                    case.inputs[name].flat[0] = value
            yield case
    first = sample_dimension(source.inputs)
    if isinstance(first, str) and dims[first].min > 0:
        yield _drawn(source, "empty", {**typical_sizes(dims)[0], first: 0}, seed, probe=True)


def _is_float(spec: Input) -> bool:
    return spec.is_float and not spec.is_fixed


def _is_mask(spec: Input) -> bool:
    return spec.is_mask and not spec.is_fixed


def _is_ranged(spec: Input) -> bool:
    return not spec.is_float and not spec.is_fixed and not spec.is_mask and spec.range is not None


def _constant(value: float) -> Fill:
    return lambda spec, drawn, rng: np.full(drawn.shape, value)


def _end(index: int) -> Fill:
    return lambda spec, drawn, rng: np.full(drawn.shape, spec.range[index] if spec.range else 0)


def _span(spec: Input, drawn: Array, rng: np.random.Generator) -> Array:
    """Values over the whole range, including both ends, in random order."""
    assert spec.range is not None
    values = np.round(np.linspace(spec.range[0], spec.range[1], drawn.size)).astype(np.int64)
    if drawn.size == 1:
        values[:] = spec.range[1]
    return rng.permutation(values).reshape(drawn.shape)


def _ragged(spec: Input, drawn: Array, rng: np.random.Generator) -> Array:
    """A mask of padded rows: on up to a random length, then off. Alternating if all rows have the full length."""
    length = drawn.shape[-1]
    lengths = rng.integers(1, length, size=(*drawn.shape[:-1], 1), endpoint=True) if length else np.zeros(1)
    rows = np.arange(length) < lengths
    return rows if not rows.all() else np.arange(drawn.size).reshape(drawn.shape) % 2 == 0


# (label, which inputs are filled, with what). Other inputs keep their random values.
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
    """Clip floats to the declared range, if there is one."""
    if spec.range is None or not spec.is_float:
        return values
    return np.clip(values, *spec.range).astype(values.dtype)
