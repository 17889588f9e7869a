"""Ranges of activations from calibration samples: the widest, or one that clips outliers.

ONNX Runtime's calibration keeps every activation of every sample in memory before it counts anything: 20 GB for a
convolutional network with 64 samples. Here each batch is reduced to a minimum, a maximum and counts per tensor, and the
batch's tensors are read in groups of limited size. Later candidates reuse what an earlier one has counted.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from onward.registry.artifact.onnx_file import save
from onward.registry.files import sha256_file
from onward.stages.transforms.builder import Feed

Floats = npt.NDArray[np.floating[Any]]

# Bytes of activations that one run may return.
GROUP_BYTES = 256_000_000
# Bins of a histogram between the smallest and the largest value.
BINS = 2048
# Values per tensor and batch that are counted; more are sampled in equal steps.
COUNTED = 1_000_000
# Values of one sign that `percentile` clips, as in ONNX Runtime: 99.999 % in all remain.
CLIPPED = (1 - 0.99999) / 2
# Magnitudes above this serve as minus infinity in masks. Their scale would round all other values to 0.
HUGE = 1e30
# Steps of an unsigned 8-bit activation, and of one sign for the entropy of a symmetric range.
STEPS, HALF_STEPS = 255, 128
# Shares of the widest range that `mse` tries, for both ends together and then for each.
SHARES = np.linspace(0.1, 1.0, 46)
# Statistics of so many graphs are remembered.
REMEMBERED = 8


@dataclass(frozen=True)
class Ranges:
    """Ranges of activations.

    Attributes:
        known: (lowest, highest) by name of the tensor.
        unbounded: Tensors with infinite, huge or no values; int8 cannot represent them.
    """

    known: dict[str, tuple[float, float]] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)


def ranges(source: Path, feeds: Sequence[Feed], method: str, operators: Sequence[str] = ()) -> Ranges:
    """Find the ranges of the activations that some operators read and write.

    Args:
        source: The float ONNX file.
        feeds: Calibration inputs by name, in batches.
        method: "minmax", the widest range; "percentile", without the extreme 0.001 %; "entropy", with the least
            Kullback-Leibler divergence of the rounded distribution (Migacz, TensorRT, 2017); "mse", with the least mean
            square error of the rounded values.
        operators: Operator types; all if empty.

    Returns:
        The ranges.
    """
    counter = _counter(source, feeds, operators)
    widest = counter.extremes()
    if method == "minmax":
        return widest
    choose = {"percentile": _by_percentile, "entropy": _by_entropy, "mse": _by_mse}[method]
    counts = counter.histograms()
    found = {}
    for name, (low, high) in widest.known.items():
        chosen = choose(counts[name], np.linspace(low, high, BINS + 1)) if low < high else (low, high)
        found[name] = (max(low, float(chosen[0])), min(high, float(chosen[1])))
    return Ranges(found, widest.unbounded)


def each_value(
    model: onnx.ModelProto, folder: str, names: Sequence[str], feeds: Sequence[Feed], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Floats]]:
    """Run a model and return values of its inner tensors, a limited number of bytes at a time.

    Args:
        model: The model.
        folder: Where the extended model is written.
        names: Names of the tensors.
        feeds: Inputs by name, in batches.
        sizes: Elements of each tensor in a batch, to limit the memory.

    Yields:
        (name, values) for each batch and tensor.
    """
    group: list[str] = []
    filled = 0
    groups = [group]
    for name in names:
        if group and filled + 4 * sizes[name] > GROUP_BYTES:
            group, filled = [], 0
            groups.append(group)
        group.append(name)
        filled += 4 * sizes[name]
    inputs = {value.name for value in model.graph.input}
    for group in groups:
        wanted = [name for name in group if name not in inputs]
        # One session for each group: a session keeps all outputs of its graph in memory, also those not asked for.
        session = _extended(model, folder, wanted) if wanted else None
        for feed in feeds:
            values = session.run(wanted, dict(feed)) if session else []
            yield from zip(wanted, values, strict=True)
            yield from ((name, np.asarray(feed[name])) for name in group if name in inputs)


def float_tensors(model: onnx.ModelProto, operators: Iterable[str] = ()) -> dict[str, int]:
    """Find the float activations that some operators read or write.

    Args:
        model: The model.
        operators: Operator types; all if empty.

    Returns:
        The data type of each, by name; tensors of unknown type are left out, because quantisers leave them out.
    """
    chosen = set(operators)
    stored = {tensor.name for tensor in model.graph.initializer}
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    found = {}
    for node in model.graph.node:
        if not chosen or node.op_type in chosen:
            for name in (*node.input, *node.output):
                if name not in stored and kinds.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16):
                    found[name] = kinds[name]
    return found


def with_types(source: Path) -> onnx.ModelProto:
    """Load a model with the types of its inner tensors, as far as ONNX infers them."""
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    model: onnx.ModelProto = load_model_with_shape_infer(source)
    return model


class _Counter:
    """Reduces the activations of one model, each kind of statistics once."""

    def __init__(self, source: Path, feeds: Sequence[Feed], operators: Sequence[str]) -> None:
        self._source, self._feeds, self._operators = source, feeds, operators
        self._extremes: Ranges | None = None
        self._histograms: dict[str, npt.NDArray[np.int64]] | None = None
        self._sizes: dict[str, int] = {}

    def extremes(self) -> Ranges:
        """The smallest and largest value of each tensor."""
        if self._extremes is not None:
            return self._extremes
        model = with_types(self._source)
        kinds = float_tensors(model, self._operators)
        for name, kind in kinds.items():
            value = name
            if kind != TensorProto.FLOAT:  # the CPU has no kernel for the minimum of float16
                value = f"{name}/float"
                model.graph.node.append(helper.make_node("Cast", [name], [value], to=TensorProto.FLOAT))
            model.graph.node.append(helper.make_node("ReduceMin", [value], [f"{name}/lowest"], keepdims=0))
            model.graph.node.append(helper.make_node("ReduceMax", [value], [f"{name}/highest"], keepdims=0))
            model.graph.node.append(helper.make_node("Size", [name], [f"{name}/size"]))
        with _scratch() as folder:
            wanted = [f"{name}/{end}" for name in kinds for end in ("lowest", "highest", "size")]
            session = _extended(model, folder, wanted)
            lowest, highest = dict.fromkeys(kinds, np.inf), dict.fromkeys(kinds, -np.inf)
            for feed in self._feeds if wanted else ():
                values = dict(zip(wanted, session.run(wanted, dict(feed)), strict=True))
                for name in kinds:
                    if values[f"{name}/size"]:
                        lowest[name] = np.minimum(lowest[name], values[f"{name}/lowest"])
                        highest[name] = np.maximum(highest[name], values[f"{name}/highest"])
                    self._sizes[name] = max(self._sizes.get(name, 0), int(values[f"{name}/size"]))
        fit = {n for n in kinds if np.abs([lowest[n], highest[n]]).max() < HUGE}  # false for NaN
        self._extremes = Ranges({n: (float(lowest[n]), float(highest[n])) for n in kinds if n in fit}, set(kinds) - fit)
        return self._extremes

    def histograms(self) -> dict[str, npt.NDArray[np.int64]]:
        """How often values of each tensor are in each of BINS bins between its extremes."""
        if self._histograms is None:
            known = self.extremes().known
            counts = {name: np.zeros(BINS, np.int64) for name in known}
            names = [name for name, (low, high) in known.items() if low < high]
            with _scratch() as folder:
                for name, value in each_value(with_types(self._source), folder, names, self._feeds, self._sizes):
                    flat = value.reshape(-1)[:: -(-value.size // COUNTED) or 1]
                    counts[name] += np.histogram(flat, BINS, known[name])[0]
            self._histograms = counts
        return self._histograms


_COUNTERS: dict[tuple[str, tuple[str, ...]], _Counter] = {}


def _counter(source: Path, feeds: Sequence[Feed], operators: Sequence[str]) -> _Counter:
    """The counter of a file; one with the same content, samples and operators is used again."""
    digest = hashlib.sha256(sha256_file(source).encode())
    for feed in feeds:
        for name, value in feed.items():
            digest.update(f"{name}{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    key = digest.hexdigest(), tuple(sorted(operators))
    if key not in _COUNTERS:
        while len(_COUNTERS) >= REMEMBERED:
            _COUNTERS.pop(next(iter(_COUNTERS)))
        _COUNTERS[key] = _Counter(source, feeds, operators)
    return _COUNTERS[key]


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="onward-calibration-")


def _extended(model: onnx.ModelProto, folder: str, wanted: Sequence[str]) -> Any:
    """A session of the model with further outputs. ONNX Runtime may not fuse across them, so results are the graph's.

    Level "basic" folds constants; without it, decomposed graphs need three times as long.
    """
    import onnxruntime

    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    there = {value.name for value in extended.graph.output}
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
    path = Path(folder) / "extended.onnx"
    save(extended, path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


Chosen = tuple[float, float]
Counts = npt.NDArray[np.int64]
Choose = Callable[[Counts, Floats], Chosen]


def _by_percentile(counts: Counts, edges: Floats) -> Chosen:
    """Cut off the same share of the values at both ends."""
    share = np.cumsum(counts) / max(1, counts.sum())
    first, last = (int(np.searchsorted(share, part)) for part in (CLIPPED, 1 - CLIPPED))
    return float(edges[first]), float(edges[min(BINS, last + 1)])


def _by_mse(counts: Counts, edges: Floats) -> Chosen:
    """Shrink both ends by the same factor, then each alone, to the least mean square error of rounded values."""
    centres, weight = (edges[:-1] + edges[1:]) / 2, counts / max(1, counts.sum())
    low, high = min(0.0, float(edges[0])), max(0.0, float(edges[-1]))

    def error(start: Floats, end: Floats) -> Floats:
        scale = np.maximum(end - start, 1e-30)[:, None] / STEPS
        zero = np.round(-start[:, None] / scale)
        steps = np.clip(np.round(centres / scale) + zero, 0, STEPS)
        found: Floats = (np.square((steps - zero) * scale - centres) * weight).sum(1)
        return found

    both = _least(error(low * SHARES, high * SHARES))
    one = _least(error(low * SHARES, np.full(len(SHARES), high * both))) if low else both
    other = _least(error(np.full(len(SHARES), low * one), high * SHARES)) if high else both
    return float(low * one), float(high * other)


def _least(errors: Floats) -> float:
    """The share with the least error."""
    return float(SHARES[int(np.argmin(errors))])


def _by_entropy(counts: Counts, edges: Floats) -> Chosen:
    """Find the symmetric range whose rounded distribution diverges least from the distribution."""
    largest = max(abs(float(edges[0])), abs(float(edges[-1])))
    centres = np.abs((edges[:-1] + edges[1:]) / 2)
    sizes, _ = np.histogram(centres, BINS, (0, largest), weights=counts)
    best, limit = np.inf, BINS
    for end in range(HALF_STEPS, BINS + 1, HALF_STEPS // 8):
        kept = sizes[:end].astype(np.float64)
        step = np.arange(end) * HALF_STEPS // end
        total = np.bincount(step, kept, HALF_STEPS)
        filled = np.bincount(step, kept > 0, HALF_STEPS)
        rounded = np.where(kept > 0, (total / np.maximum(filled, 1))[step], 0.0)
        kept[-1] += sizes[end:].sum()
        there = kept > 0
        if not rounded.sum():
            continue
        wanted, got = kept[there] / kept.sum(), np.maximum(rounded[there] / rounded.sum(), 1e-12)
        divergence = float((wanted * np.log(wanted / got)).sum())
        if divergence < best:
            best, limit = divergence, end
    threshold = largest * limit / BINS
    return max(float(edges[0]), -threshold), min(float(edges[-1]), threshold)
