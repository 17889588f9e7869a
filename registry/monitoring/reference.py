"""The reference of a version: how its inputs and outputs were distributed when it was published.

It is written into the version's folder before the manifest is made, so it is signed with the version. A server needs no
raw data: bin counts, and means over blocks of samples, are all that the bootstrap in drift.py resamples. There is no
sample in it. What of a value can be read from it are the limits of bins (quantiles), the value of a column that never
varies, and small integers that are categories. Of text, there are shares of hashed words only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from onward.registry.artifact.mlflow_model import MONITORING
from onward.registry.errors import Refused
from onward.registry.evidence.records import OutputKind, Record, first_problem
from onward.registry.evidence.sample_axes import to_front
from onward.registry.files import write_atomically
from onward.registry.monitoring import statistics
from onward.registry.monitoring.features import PROJECTIONS, Raw, Watched, as_array, features, watched
from onward.registry.monitoring.hashing import BUCKETS, buckets, frequencies, shuffled

Array = npt.NDArray[Any]
# The file in a version's folder.
PATH = f"{MONITORING}/reference.json"
# The largest size of the file, in bytes. Features beyond it are left out, the last columns of each tensor first.
LARGEST = 200_000
# A tensor with fewer samples at publication is not watched.
FEWEST_SAMPLES = 20
# Bins of equal frequency. A sixth of them, so that deciles are limits of bins, has ten.
_BINS = 60
# An integer column with more different values is a number.
_MOST_VALUES = 32
_FOURIER = 32
# Projections count as at most this many standard deviations from their mean: larger angles would overflow.
_FARTHEST = 1e9
# Limits of bins beyond the smallest and the largest value, in standard deviations.
_BEYOND = np.array([0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 64, 256, 1024, 1e4, 1e5, 1e6])


class Feature(Record):
    """The distribution of one feature.

    Attributes:
        tensor: The tensor's place among those of the reference.
        label: The feature's name within the tensor.
        family: What it consists of. "bins" are of numbers, "categories" of integers or of equal and other numbers,
            "shares" of tokens or words, "vectors" of projections.
        samples: Number of samples at publication.
        center: What is subtracted from numbers; the mean.
        scale: What numbers are divided by then; the standard deviation.
        edges: The limits of the bins of such numbers.
        points: The mean of such numbers in each bin.
        counts: The samples of each bin or bucket.
        lowest: The smallest category, if each has a bucket of its own; null if they are hashed.
        blocks: Means over blocks of samples in a random order, of shares or of random Fourier features.
        means: Of vectors: the mean of each component.
        deviations: Of vectors: the standard deviation of each component.
    """

    tensor: int
    label: str
    family: Literal["bins", "categories", "shares", "vectors"]
    samples: int
    center: float = 0.0
    scale: float = 1.0
    edges: list[float] = []
    points: list[float] = []
    counts: list[int] = []
    lowest: int | None = None
    blocks: list[list[float]] = []
    means: list[float] = []
    deviations: list[float] = []

    def codes(self, values: Array) -> Array:
        """The bin or bucket of each value; values that are no finite numbers are left out."""
        if not self.edges:
            return buckets(values, self.lowest, len(self.counts))
        with np.errstate(all="ignore"):
            scaled = (values.astype(np.float64) - self.center) / self.scale
        found: Array = np.searchsorted(self.edges, scaled[np.isfinite(values)], "left")
        return found

    def vectors(self, values: Array) -> Array:
        """The vector of each sample of shares or vectors; samples with anything else than finite numbers left out."""
        finite: Array = values[np.isfinite(values).all(1)]
        if self.family == "shares":
            return finite
        with np.errstate(over="ignore"):
            scaled = (finite - np.asarray(self.means)) / np.asarray(self.deviations)
        scaled = np.clip(scaled, -_FARTHEST, _FARTHEST)
        # Kernel exp(-|x - y|^2 / (2 PROJECTIONS)): at the typical distance of standardised projections (Rahimi and
        # Recht, 2007).
        angles = scaled @ (frequencies(PROJECTIONS, _FOURIER) / np.sqrt(PROJECTIONS))
        found: Array = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(_FOURIER)
        return found


class Reference(Record):
    """The distributions of a version's inputs and outputs at publication.

    Attributes:
        schema_version: The version of this format.
        tensors: The tensors that are watched.
        features: Their features.
        left_out: Number of features that did not fit into LARGEST bytes.
        axes: The axis of samples of tensors in the model's own layout, where it is not the first; null if a tensor has
            none, so that each call has one sample.
    """

    schema_version: int = 1
    tensors: list[Watched] = []
    features: list[Feature] = []
    left_out: int = 0
    axes: dict[str, int | None] = {}

    def title(self, feature: Feature) -> str:
        """The full name of a feature, such as "output logits: margin"."""
        return self.tensors[feature.tensor].title(feature.label)

    def samples_first(self, name: str, values: Array) -> Array:
        """Move the axis of samples of a request's input or output to the front, as windows need it."""
        return to_front(values, self.axes.get(name, 0))

    def to_json(self) -> str:
        """The content of the file."""
        return self.model_dump_json(exclude_defaults=True) + "\n"


def build(
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    kinds: Sequence[OutputKind] = (),
    axes: Mapping[str, int | None] | None = None,
) -> Reference:
    """Compute the reference of a version. The same arrays give the same reference.

    Args:
        inputs: Each input of the calibration and evaluation samples, samples on the first axis.
        outputs: Each output of the evaluation samples, samples on the first axis.
        kinds: The kind of each output; an output without one counts as plain values.
        axes: The axis of samples of tensors in the model's own layout, where it is not the first; None for none.

    Returns:
        The reference. Tensors with fewer than FEWEST_SAMPLES samples, or without elements, are not in it.
    """
    known = {kind.output: kind for kind in kinds}
    tensors: list[Watched] = []
    found: list[tuple[tuple[int, int], Feature]] = []
    for kind, arrays in (("output", outputs), ("input", inputs)):
        for name, values in arrays.items():
            array = as_array(values)
            if array is None or len(array) < FEWEST_SAMPLES:
                continue
            tensor = watched(name, "output" if kind == "output" else "input", array, known.get(name))
            for rank, raw in enumerate(features(tensor, array)):
                feature = _fit(len(tensors), raw)
                if feature is not None:
                    found.append(((int(kind == "input"), rank), feature))
            tensors.append(tensor)
    reference = Reference(tensors=tensors, axes=dict(axes or {}))
    room = LARGEST - len(reference.model_dump_json()) - 100
    for _, feature in sorted(found, key=lambda entry: entry[0]):
        room -= len(feature.model_dump_json()) + 1
        if room < 0:
            break
        reference.features.append(feature)
    reference.left_out = len(found) - len(reference.features)
    return reference


def _fit(tensor: int, raw: Raw) -> Feature | None:
    """The distribution of one feature; None if it has too few samples or says nothing."""
    feature = Feature(tensor=tensor, label=raw.label, family="bins", samples=len(raw.values))
    if raw.family == "shares":
        return _fit_blocks(feature.model_copy(update={"family": "shares"}), raw.values)
    if raw.family == "vectors":
        finite = raw.values[np.isfinite(raw.values).all(1)]
        if len(finite) < FEWEST_SAMPLES:
            return None
        mean, spread = _moments(finite)
        means, deviations = _rounded(mean, 9), _rounded(np.where(spread > 0, spread, 1), 9)
        update = {"family": "vectors", "means": means, "deviations": deviations}
        return _fit_blocks(feature.model_copy(update=update), finite)
    if raw.family == "integers" and len(np.unique(raw.values)) <= _MOST_VALUES:
        low, high = int(raw.values.min()), int(raw.values.max())
        lowest, size = (low, high - low + 2) if high - low < BUCKETS - 1 else (None, BUCKETS)
        counts = np.bincount(buckets(raw.values, lowest, size), minlength=size).tolist()
        return feature.model_copy(update={"family": "categories", "lowest": lowest, "counts": counts})
    return _fit_numbers(feature, raw.values.astype(np.float64))


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over the samples, also of numbers whose sums or squares would overflow."""
    largest = np.abs(values).max(0)
    largest = np.where(largest > 0, largest, 1)
    scaled = values / largest
    return scaled.mean(0) * largest, scaled.std(0) * largest


def _fit_blocks(feature: Feature, values: Array) -> Feature:
    """Means over blocks of samples, in an order that has nothing to do with that of the evaluation set."""
    vectors = feature.vectors(values)[shuffled(len(values))]
    means = statistics.block_sums(vectors) / statistics.lengths(len(vectors))[:, None]
    return feature.model_copy(
        update={"samples": len(vectors), "blocks": [_rounded(row, 4, digits=False) for row in means]}
    )


def _fit_numbers(feature: Feature, values: Array) -> Feature | None:
    """Bins of equal frequency, and bins beyond the smallest and the largest value."""
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) < FEWEST_SAMPLES:
        return None
    if finite[0] == finite[-1]:
        if feature.label == "length":  # all samples of an array have the same: that says nothing about requests
            return None
        same = float(finite[0])
        update = {"family": "categories", "center": same, "scale": max(abs(same), 1e-6) * 1e-6, "edges": [-1.0, 1.0]}
        return feature.model_copy(update={**update, "samples": len(finite), "counts": [0, len(finite), 0]})
    center, scale = _rounded(np.array(_moments(finite)), 9)
    scaled = (finite - center) / scale
    if not (np.isfinite(scaled).all() and scaled[0] < scaled[-1]):
        return None
    limits = np.concatenate([scaled[0] - _BEYOND[::-1], _inner_edges(scaled), scaled[-1] + _BEYOND])
    edges = np.unique(np.round(limits, 6))
    binned = feature.model_copy(
        update={"samples": len(finite), "center": center, "scale": scale, "edges": edges.tolist()}
    )
    codes = binned.codes(finite)
    counts = np.bincount(codes, minlength=len(edges) + 1)
    limits = np.concatenate([[edges[0] * 1.5], edges, [edges[-1] * 1.5]])
    middle = (limits[1:] + limits[:-1]) / 2
    sums = np.bincount(codes, scaled, minlength=len(counts))
    points = np.where(counts > 0, sums / np.maximum(counts, 1), middle)
    return binned.model_copy(update={"points": _rounded(points, 4, digits=False), "counts": counts.tolist()})


def _inner_edges(ordered: Array) -> Array:
    """Limits of bins of about equal frequency, each halfway between two different values."""
    different, counts = np.unique(ordered, return_counts=True)
    found: Array = (different[1:] + different[:-1]) / 2
    if len(different) > _BINS:
        bins = min(_BINS, max(10, len(ordered) // 2))
        place = np.searchsorted(np.cumsum(counts), np.arange(1, bins) * len(ordered) / bins, "left")
        frequent = np.flatnonzero(counts > len(ordered) / bins)
        chosen = np.concatenate([place, frequent, frequent - 1])
        found = found[np.unique(chosen[(chosen >= 0) & (chosen < len(found))])]
    return found


def _rounded(values: Array, places: int, digits: bool = True) -> list[float]:
    """Numbers to so many digits, or places: another order of additions on another machine gives the same bytes."""
    if not digits:
        return [float(value) for value in np.round(values, places) + 0.0]
    return [float(f"{value:.{places}g}") for value in values.tolist()]


def write(reference: Reference, folder: Path) -> None:
    """Write monitoring/reference.json.

    Args:
        reference: The reference.
        folder: The version's folder, or another that becomes part of it.
    """
    (folder / MONITORING).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PATH, reference.to_json().encode())


def read(folder: Path) -> Reference | None:
    """Read the reference of a version.

    Args:
        folder: The version's folder.

    Returns:
        The reference; None if the version was published without one.

    Raises:
        Refused: The file cannot be read.
    """
    try:
        return Reference.model_validate_json((folder / PATH).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise Refused(f"{PATH} cannot be read: {first_problem(error)}") from None
    except OSError as error:
        raise Refused(f"{PATH} cannot be read: {error.strerror}") from None
