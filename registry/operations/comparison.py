"""Compare two versions: their graphs, and what was recorded of them.

from registry import diff
diff.compare("cnn@staging", "cnn@production").different()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onward.registry.artifact import onnx_file
from onward.registry.evidence import shadow
from onward.registry.evidence.metric_names import current
from onward.registry.store.download import download
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target

Value = str | int | float | None

SECTIONS = ("graph", "operators", "evidence", "params", "metrics", "latencies")
# This evidence is shown in another section, or is only an identifier.
_NOT_EVIDENCE = ("sha256", "manifest", "serving", "run_id", "opset", "size_mb")
_TIMES = ("latency/", "throughput/", "ratio/", "by_batch/", "by_callers/", "p50_ms", "speedup")

# Amounts are counts, times, rates and bytes. Their zero means "none", so a relative change makes sense. All others are
# compared by their difference: decibels, cosines, shares, ratios, qualities, errors, version numbers.
_AMOUNTS = ("parameters", "nodes", "size in bytes", "graph/nodes")
_AMOUNT_ENDINGS = ("_ms", "_mb", "_per_s", "_throughput")  # the last one is of earlier Onwards

# A percentage of a very small base is not informative, so "+900 %" is the largest one shown.
_LARGEST, _SMALLEST = 10.0, 0.01


@dataclass(frozen=True)
class Fact:
    """One value of both sides; None where a side lacks it."""

    section: str
    name: str
    left: Value
    right: Value

    @property
    def differs(self) -> bool:
        """Whether the two sides have different values."""
        return self.left != self.right

    @property
    def change(self) -> float | None:
        """The relative change from left to right, or None if a percentage is not informative.

        It is informative only for amounts of the same sign, whose right value is between 0.01 and 10 times the left.
        """
        if not self._is_amount or not isinstance(self.left, int | float) or not isinstance(self.right, int | float):
            return None
        if not self.left or not math.isfinite(self.left) or not math.isfinite(self.right):
            return None
        ratio = self.right / self.left
        return ratio - 1 if _SMALLEST <= ratio <= _LARGEST else None

    @property
    def difference(self) -> float | None:
        """Right minus left, in the value's unit; None if one of them is not a finite number."""
        if not isinstance(self.left, int | float) or not isinstance(self.right, int | float):
            return None
        difference = self.right - self.left
        return difference if math.isfinite(difference) else None

    @property
    def in_words(self) -> str:
        """The change as text: a percentage for amounts, else the difference; "" if equal or not numeric."""
        if not self.differs or self.difference is None:
            return ""
        return f"{self.difference:+.4g}" if self.change is None else f"{self.change:+.1%}"

    @property
    def _is_amount(self) -> bool:
        if self.section == "operators" or self.name in _AMOUNTS:
            return True
        return self.name.endswith(_AMOUNT_ENDINGS)


@dataclass(frozen=True)
class Comparison:
    """Two versions side by side. `notes` say what could not be compared, and why."""

    left: Target
    right: Target
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]

    def different(self) -> list[Fact]:
        """The facts that differ."""
        return [fact for fact in self.facts if fact.differs]


def compare(left: str, right: str, store: Store | None = None) -> Comparison:
    """Compare two versions.

    Args:
        left: MODEL@ENVIRONMENT or MODEL/VERSION.
        right: the same, for the other version.
        store: the store; None for the store in use.

    Raises:
        UsageError: a target does not exist.
        Refused: nothing is live in an environment, or files differ from the published ones.
        StoreUnreachable: the store did not answer.
    """
    store = store or Store(create=False)
    found = [resolve(target, store) for target in (left, right)]
    runs = [store.run(target.evidence.get("run_id", "")) for target in found]
    notes = [
        f"the run of {target} was deleted: its params, metrics and latencies are not known"
        for target, run in zip(found, runs, strict=True)
        if run is None
    ]
    sides = [
        {**dict(_of_version(target, store)), **dict(_of_run(*(run or ({}, {}))))}
        for target, run in zip(found, runs, strict=True)
    ]
    names = sorted(sides[0].keys() | sides[1].keys(), key=lambda key: (SECTIONS.index(key[0]), key[1]))
    facts = tuple(Fact(*name, sides[0].get(name), sides[1].get(name)) for name in names)
    return Comparison(found[0], found[1], facts, tuple(notes))


def _of_version(target: Target, store: Store) -> Iterator[tuple[tuple[str, str], Value]]:
    graph = onnx_file.describe(download(target, store))
    for domain, number in graph.opsets.items():
        yield ("graph", f"opset {domain}"), number
    yield ("graph", "IR version"), graph.ir_version
    yield ("graph", "producer"), graph.producer
    yield ("graph", "parameters"), graph.parameters
    yield ("graph", "nodes"), graph.nodes
    yield ("graph", "size in bytes"), graph.size_bytes
    for kind, specs in (("input", graph.inputs), ("output", graph.outputs)):
        for spec in specs:
            yield ("graph", f"{kind} {spec.name}"), f"{spec.dtype}[{', '.join(str(dim) for dim in spec.shape)}]"
    for operator, count in graph.operators.items():
        yield ("operators", operator), count
    for name, text in target.evidence.items():
        if name not in _NOT_EVIDENCE and not name.startswith(shadow.PREFIX):
            yield ("evidence", name), _number(text)
    for found in shadow.read(target.evidence):
        of = f"{shadow.PREFIX}{found.environment}"
        yield ("evidence", f"{of} agreement"), found.agreement
        yield ("evidence", f"{of} latency_ratio"), found.latency_ratio


def _of_run(params: Mapping[str, str], metrics: Mapping[str, float]) -> Iterator[tuple[tuple[str, str], Value]]:
    yield from ((("params", name), text) for name, text in params.items())
    yield from (((_section(name), name), value) for name, value in current(metrics).items())


def _section(metric: str) -> str:
    return "latencies" if metric.startswith(_TIMES) else "metrics"


def _number(text: str) -> Value:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def as_json(comparison: Comparison) -> Mapping[str, object]:
    """The comparison in the form of the command's JSON output, including equal facts."""
    return {
        "left": _side(comparison.left),
        "right": _side(comparison.right),
        "facts": [
            {
                "section": fact.section,
                "name": fact.name,
                "left": fact.left,
                "right": fact.right,
                "differs": fact.differs,
                "change": fact.change,
                "difference": fact.difference,
            }
            for fact in comparison.facts
        ],
        "notes": list(comparison.notes),
    }


def _side(target: Target) -> Mapping[str, object]:
    return {
        "model": target.model,
        "version": target.version,
        "sha256": target.sha256,
        "environment": target.environment or None,
        "entry": target.entry or None,
    }
