"""What differs between two versions: the graphs themselves, and what was recorded of them.

from registry import diff
diff.compare("cnn@staging", "cnn@production").different()
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onward.registry.artifact import onnx_file
from onward.registry.inference.session import download
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store

if TYPE_CHECKING:
    from onward.registry.store.resolve import Target

Value = str | int | float | None

SECTIONS = ("graph", "operators", "evidence", "params", "metrics", "latencies")
# Said elsewhere in the comparison, or a name and no fact.
_NOT_EVIDENCE = ("sha256", "manifest", "serving", "run_id", "opset", "size_mb")
_TIMES = ("latency_", "throughput_", "ratio_")

# Amounts: counts, times, rates and bytes, of which zero is none, so that a percentage means something. Anything else is
# compared by its difference: decibels, cosines, shares, ratios, qualities, errors, numbers of versions.
_AMOUNTS = ("parameters", "nodes", "size in bytes")
_AMOUNT_ENDINGS = ("_ms", "_mb", "_throughput")

# A percentage of a base that is tiny beside the other value says nothing: "+900 %" is the largest one shown.
_LARGEST, _SMALLEST = 10.0, 0.01


@dataclass(frozen=True)
class Fact:
    """One thing that is known of either side; None where a side lacks it."""

    section: str
    name: str
    left: Value
    right: Value

    @property
    def differs(self) -> bool:
        return self.left != self.right

    @property
    def change(self) -> float | None:
        """The right relative to the left, less 1. Null where a percentage means nothing: unless both are amounts of one
        sign, and the right is between a hundredth of the left and ten times it."""
        if not self._is_amount or not isinstance(self.left, int | float) or not isinstance(self.right, int | float):
            return None
        if not self.left or not math.isfinite(self.left) or not math.isfinite(self.right):
            return None
        ratio = self.right / self.left
        return ratio - 1 if _SMALLEST <= ratio <= _LARGEST else None

    @property
    def difference(self) -> float | None:
        """The right less the left, in their own unit; null where one is no finite number."""
        if not isinstance(self.left, int | float) or not isinstance(self.right, int | float):
            return None
        difference = self.right - self.left
        return difference if math.isfinite(difference) else None

    @property
    def in_words(self) -> str:
        """How much it changed: a percentage of an amount, else the difference; empty where it did not, or no number
        says how much."""
        if not self.differs or self.difference is None:
            return ""
        return f"{self.difference:+.4g}" if self.change is None else f"{self.change:+.1%}"

    @property
    def _is_amount(self) -> bool:
        if self.section == "operators" or self.name in _AMOUNTS or self.name.startswith("throughput_"):
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
        return [fact for fact in self.facts if fact.differs]


def compare(left: str, right: str, store: Store | None = None) -> Comparison:
    """Compare what two targets (MODEL@ENVIRONMENT or MODEL/VERSION) name.

    Raises:
        UsageError: a target names nothing.
        Refused: nothing is live there, or files are not those that were published.
        StoreUnreachable: the store did not answer.
    """
    store = store or Store(create=False)
    found = [resolve(target, store) for target in (left, right)]
    runs = [store.run(target.evidence.get("run_id", "")) for target in found]
    notes = [
        f"the run of {target} is gone: its params, metrics and latencies are not known"
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
        if name not in _NOT_EVIDENCE:
            yield ("evidence", name), _number(text)


def _of_run(params: Mapping[str, str], metrics: Mapping[str, float]) -> Iterator[tuple[tuple[str, str], Value]]:
    yield from ((("params", name), text) for name, text in params.items())
    yield from (((_section(name), name), value) for name, value in metrics.items())


def _section(metric: str) -> str:
    return "latencies" if metric.startswith(_TIMES) else "metrics"


def _number(text: str) -> Value:
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def as_json(comparison: Comparison) -> Mapping[str, object]:
    """The comparison as JSON has it: every fact, equal ones too."""
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
