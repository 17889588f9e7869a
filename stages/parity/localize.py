"""Where two computations part: every inner value of a graph made visible, and held to what it should be.

Against another graph, values are matched by name, which optimisers and quantisers keep where they keep the value;
against PyTorch, see localize_torch.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onward.registry.artifact import onnx_file
from onward.registry.artifact.graph_nodes import origin
from onward.registry.evidence.records import CaseResult, FirstDivergence
from onward.stages.parity.cases import Case
from onward.stages.parity.check import Expected
from onward.stages.workers.worker import AS_IT_IS, Worker, WorkerFailure

Array = npt.NDArray[Any]
Values = dict[str, Array]

# How far a value may be from float64, relative to its largest element, before it counts as another one: some hundred
# roundings of float32 (1.2e-7 each); and how many times PyTorch's own distance.
ROUNDING, MULTIPLE = 2e-5, 30.0
# Under this, a quantised value is another one: about what 3 bits leave of it.
QUANTISED_DB = 18.0


def pick(expected: Iterable[Expected], results: Iterable[CaseResult]) -> Expected | None:
    """The smallest case that failed with an answer; None where every failure is a crash, or none is."""
    wrong = {result.case for result in results if result.failed and result.outputs}
    found = [item for item in expected if item.case.name in wrong]
    return min(found, key=lambda item: sum(value.size for value in item.case.inputs.values()), default=None)


def against_graph(plain: Path, variant: Path, case: Case, quantised: bool) -> FirstDivergence:
    """The first value of `variant`, by the graph's order, that departs from the value of the same name in `plain`;
    for a quantised graph, the first that keeps less than QUANTISED_DB of signal to noise."""
    base, made = onnx_file.load_graph(plain), onnx_file.load_graph(variant)
    known = {name for node in base.graph.node for name in node.output if name}
    shared = [(node, name) for node in made.graph.node for name in node.output if name in known]
    names = [name for _, name in shared]
    wanted, got = (inner_values(path, names, case) for path in (plain, variant))
    for node, name in shared:
        if name not in wanted or name not in got:
            continue
        found = _differs(wanted[name], got[name], quantised)
        if found:
            made_from = next((n for n in base.graph.node if name in n.output), node)
            module, source = origin(made_from)
            return FirstDivergence(
                case=case.name,
                value=name,
                operator=node.op_type,
                module=module,
                source=source,
                difference=found[0],
                scale=found[1],
                reason="the first value of that name to differ from the plain export's",
            )
    return FirstDivergence(case=case.name, reason="no inner value that both graphs name differs")


def sentence(divergence: FirstDivergence) -> str:
    """Where, in words."""
    if not divergence.value:
        return divergence.reason
    where = f"{divergence.operator} giving {divergence.value!r}"
    if divergence.module:
        where += f" in {divergence.module}"
    if divergence.source:
        where += f" ({divergence.source})"
    return f"parts first at {where}: off by {divergence.difference:.3g} where values reach {divergence.scale:.3g}"


def inner_values(path: Path, names: Iterable[str], case: Case) -> Values:
    """These values of a graph, computed by ONNX Runtime with its own optimisations off, in a worker."""
    model = onnx.load(path)
    outward = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in outward:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as temporary:
        opened = Path(temporary) / "opened.onnx"
        onnx_file.save(model, opened)
        with Worker.onnx(opened, f"{path.name}, opened", options=AS_IT_IS, timeout=300) as worker:
            try:
                return worker.run(case.inputs)
            except WorkerFailure:
                return dict(_by_halves(model, outward, names, case, opened))


def _by_halves(
    model: onnx.ModelProto, outward: set[str], names: Iterable[str], case: Case, opened: Path
) -> Iterator[tuple[str, Array]]:
    """The same, where one value or another cannot be had: as many as can, by halves."""
    waiting = [list(dict.fromkeys(name for name in names if name not in outward))]
    kept = [value for value in model.graph.output if value.name in outward]
    while waiting:
        part = waiting.pop()
        del model.graph.output[:]
        model.graph.output.extend([*kept, *(onnx.ValueInfoProto(name=name) for name in part)])
        onnx_file.save(model, opened)
        with Worker.onnx(opened, "a graph, opened in part", options=AS_IT_IS, timeout=300) as worker:
            try:
                yield from worker.run(case.inputs).items()
            except WorkerFailure:
                if len(part) > 1:
                    waiting += [part[: len(part) // 2], part[len(part) // 2 :]]


def parts(wanted: Array, got: Array, true: Array | None) -> tuple[float, float] | None:
    """(largest difference, largest magnitude) where `got` is another value than `wanted`; None where it is the same."""
    if got.shape != wanted.shape:
        return (float("inf"), _magnitude(wanted))
    if wanted.dtype.kind != "f":
        different = wanted.astype(np.float64) != got.astype(np.float64)
        return (
            (float(np.abs(wanted.astype(np.float64) - got)[different].max()), _magnitude(wanted))
            if different.any()
            else None
        )
    measure = wanted.astype(np.float64) if true is None or true.shape != wanted.shape else true.astype(np.float64)
    finite = np.isfinite(measure) & np.isfinite(wanted)
    if not np.isfinite(got[finite]).all():
        return (float("inf"), _magnitude(wanted))
    if not finite.any():
        return None
    difference = float(np.abs(got[finite] - measure[finite]).max())
    own = float(np.abs(wanted[finite] - measure[finite]).max())
    scale = float(np.abs(measure[finite]).max())
    return (difference, scale) if difference > max(ROUNDING * scale, MULTIPLE * own) else None


def _differs(wanted: Array, got: Array, quantised: bool) -> tuple[float, float] | None:
    if not quantised or got.shape != wanted.shape or wanted.dtype.kind != "f":
        return parts(wanted, got, None)
    noise = float(np.square(got.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted.astype(np.float64)).sum())
    if noise == 0 or signal == 0 or 10 * np.log10(signal / noise) >= QUANTISED_DB:
        return None
    return float(np.abs(got.astype(np.float64) - wanted).max()), _magnitude(wanted)


def _magnitude(values: Array) -> float:
    finite = np.abs(values[np.isfinite(values)].astype(np.float64)) if values.dtype.kind in "fiub" else np.zeros(0)
    return float(finite.max()) if finite.size else 0.0
