"""Judges the answers of a candidate by those of the live version, by the kind of each output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onward.registry.artifact.replay import Recorded
from onward.registry.evidence import kinds
from onward.registry.evidence.records import OutputFidelity, OutputKind
from onward.registry.evidence.sample_axes import to_front
from onward.registry.serve.protocol import Array
from onward.registry.serve.versions import folder_of

if TYPE_CHECKING:
    from onward.registry.inference.model import Loaded

Outputs = Mapping[str, Array]
Pair = tuple[Outputs, Outputs]  # the live version's outputs, and the candidate's


class Judge:
    """How the answers of one candidate are judged: by the kinds and limits that were recorded with it.

    Args:
        candidate: the candidate.
    """

    def __init__(self, candidate: Loaded) -> None:
        recorded = Recorded.load(folder_of(candidate))
        self._kinds = {kind.output: kind for kind in recorded.kinds}
        self._axes = candidate.sample_axes
        # The share of answers that may change if the kind has no limit of its own: params.yaml's
        # `tolerance.agreement` of the candidate's precision. float32 has none there, so the widest default applies.
        precision = str(candidate.evidence.get("precision", ""))
        self._changed = 1 - recorded.agreement.get(precision, 1 - kinds.CLASS_LIMIT)

    def judge(self, pairs: Sequence[Pair]) -> list[OutputFidelity]:
        """Judge all outputs.

        Requests can have outputs of different shapes. Each shape is judged on its own, and the results are averaged,
        weighted by the number of samples.

        Args:
            pairs: the outputs of both versions for each request.

        Returns:
            one result per output and measure, the main measure of each output first.
        """
        found: list[OutputFidelity] = []
        for name in pairs[0][0] if pairs else ():
            kind = self._kind(name, pairs[0][0][name])
            groups: dict[tuple[int, ...], list[Pair]] = defaultdict(list)
            for wanted, got in pairs:
                rows = {key: _rows(value, kind) for key, value in wanted.items() if key in (name, kind.beside)}
                answer = {name: _rows(got[name], kind)} if name in got else {}
                groups[rows[name].shape[1:]].append((rows, answer))
            found += _averaged([self._group(kind, group) for group in groups.values()])
        return found

    def _kind(self, name: str, values: Array) -> OutputKind:
        """The recorded kind; without one, the kind that judges every number."""
        other = OutputKind(
            output=name, kind="values" if values.dtype.kind == "f" else "indices", samples=self._axes.get(name)
        )
        return self._kinds.get(name, other)

    def _group(self, kind: OutputKind, pairs: Sequence[Pair]) -> tuple[int, list[OutputFidelity]]:
        """The number of samples, and the results, of requests with outputs of one shape."""
        name = kind.output
        shapes = {answer[name].shape[1:] if name in answer else None for _, answer in pairs}
        wanted = {key: np.concatenate([rows[key] for rows, _ in pairs]) for key in pairs[0][0]}
        got = (
            {name: np.concatenate([rows[name] for _, rows in pairs])} if len(shapes) == 1 and None not in shapes else {}
        )
        return len(wanted[name]), kinds.judge(kind, wanted, got, self._changed)


def agreement(outputs: Sequence[OutputFidelity]) -> float:
    """The share of answers that the worst output keeps, by the main measure of its kind.

    Args:
        outputs: the results of Judge.judge.
    """
    main: dict[str, OutputFidelity] = {}
    for one in outputs:
        main.setdefault(one.output, one)
    return min((1 - min(1.0, one.value) for one in main.values()), default=1.0)


def _rows(values: Array, kind: OutputKind) -> Array:
    """An output with its samples, and steps if there are any, on the first axes."""
    values = to_front(np.asarray(values), kind.samples)
    return values[:, None] if kind.steps else values


def _averaged(groups: Sequence[tuple[int, list[OutputFidelity]]]) -> list[OutputFidelity]:
    if len(groups) == 1:
        return groups[0][1]
    found = []
    for measure in dict.fromkeys(one.measure for _, results in groups for one in results):
        parts = [(count, one) for count, results in groups for one in results if one.measure == measure]
        counts = [count for count, _ in parts]
        mean = {
            key: float(np.average([getattr(one, key) for _, one in parts], weights=counts))
            for key in ("value", "low", "high")
        }
        first = parts[0][1]
        holds = mean["value"] <= first.limit or all(one.holds for _, one in parts)
        found.append(first.model_copy(update={**mean, "holds": holds, "reason": f"{len(parts)} shapes"}))
    return found
