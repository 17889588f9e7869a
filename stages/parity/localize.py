"""Finds the first inner value at which two computations differ.

Two graphs are compared by the names of their values. Optimisers and quantisers keep the name of a value as long as they
keep the value. For the comparison with PyTorch see exporting/localize_torch.py.
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
from onward.stages.parity.compare import magnitude
from onward.stages.workers.worker import AS_IT_IS, Worker, WorkerFailure

Array = npt.NDArray[Any]
Values = dict[str, Array]

# A value differs if its distance from float64 exceeds both: ROUNDING times its largest element (more than a hundred
# roundings of float32, which are 1.2e-7 each), and MULTIPLE times the distance of the reference.
ROUNDING, MULTIPLE = 2e-5, 30.0
# A quantised value differs if its signal-to-noise ratio is lower (in dB). 3 bits give about 18 dB, 6 dB per bit.
QUANTISED_DB = 18.0


def pick(expected: Iterable[Expected], results: Iterable[CaseResult]) -> Expected | None:
    """Choose the smallest case that failed with outputs; None if there is no failure, or only crashes.

    Args:
        expected: The reference's answers.
        results: The model's results.
    """
    wrong = {result.case for result in results if result.failed and result.outputs}
    found = [item for item in expected if item.case.name in wrong and item.case.sequence is None]
    return min(found, key=lambda item: sum(value.size for value in item.case.inputs.values()), default=None)


def against_graph(plain: Path, variant: Path, case: Case, quantised: bool) -> FirstDivergence:
    """Find the first value of `variant`, in the graph's order, that differs from the value of that name in `plain`.

    Args:
        plain: The plain export.
        variant: The graph to examine.
        case: The inputs.
        quantised: Whether `variant` is quantised. Its values may then deviate up to QUANTISED_DB.
    """
    plain_model, variant_model = onnx_file.load_graph(plain), onnx_file.load_graph(variant)
    known = {name for node in plain_model.graph.node for name in node.output if name}
    shared = [(node, name) for node in variant_model.graph.node for name in node.output if name in known]
    names = [name for _, name in shared]
    wanted, got = (inner_values(path, names, case) for path in (plain, variant))
    for node, name in shared:
        if name not in wanted or name not in got:
            continue
        found = _differs(wanted[name], got[name], quantised)
        if found:
            original = next((candidate for candidate in plain_model.graph.node if name in candidate.output), node)
            module, source = origin(original)
            return FirstDivergence(
                case=case.name,
                value=name,
                operator=node.op_type,
                module=module,
                source=source,
                difference=found[0],
                scale=found[1],
                reason="the first value that differs from the value of the same name in the plain export",
            )
    return FirstDivergence(case=case.name, reason="no inner value differs whose name is in both graphs")


def sentence(divergence: FirstDivergence) -> str:
    """Describe the place and size of the first difference, or why it is unknown."""
    if not divergence.value:
        return divergence.reason
    where = f"{divergence.operator} giving {divergence.value!r}"
    if divergence.module:
        where += f" in {divergence.module}"
    if divergence.source:
        where += f" ({divergence.source})"
    return f"differs first at {where}: off by {divergence.difference:.3g} where values reach {divergence.scale:.3g}"


def inner_values(path: Path, names: Iterable[str], case: Case) -> Values:
    """Compute inner values of a graph with ONNX Runtime, without its optimisations, in a worker.

    Args:
        path: The ONNX file.
        names: Names of the values.
        case: The inputs.

    Returns:
        The graph's outputs and these values, by name. Values that cannot be computed are left out.
    """
    model = onnx.load(path)
    outputs = {value.name for value in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in outputs:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    with tempfile.TemporaryDirectory() as temporary:
        exposed = Path(temporary) / "exposed.onnx"
        onnx_file.save(model, exposed)
        with Worker.onnx(exposed, f"{path.name} with inner values", options=AS_IT_IS, timeout=300) as worker:
            try:
                return worker.run(case.inputs)
            except WorkerFailure:
                return dict(_by_halves(model, outputs, names, case, exposed))


def _by_halves(
    model: onnx.ModelProto, outputs: set[str], names: Iterable[str], case: Case, exposed: Path
) -> Iterator[tuple[str, Array]]:
    """Compute as many values as possible, if some of them make the graph fail: failing sets of names are halved."""
    waiting = [list(dict.fromkeys(name for name in names if name not in outputs))]
    kept = [value for value in model.graph.output if value.name in outputs]
    while waiting:
        part = waiting.pop()
        del model.graph.output[:]
        model.graph.output.extend([*kept, *(onnx.ValueInfoProto(name=name) for name in part)])
        onnx_file.save(model, exposed)
        with Worker.onnx(exposed, "a graph with some inner values", options=AS_IT_IS, timeout=300) as worker:
            try:
                yield from worker.run(case.inputs).items()
            except WorkerFailure:
                if len(part) > 1:
                    waiting += [part[: len(part) // 2], part[len(part) // 2 :]]


def parts(wanted: Array, got: Array, true: Array | None) -> tuple[float, float] | None:
    """Compare an inner value with its reference.

    Args:
        wanted: The reference, of any shape.
        got: The value to compare.
        true: The reference in float64, if there is one.

    Returns:
        (largest difference, largest magnitude) if the two differ by more than rounding (ROUNDING, MULTIPLE); None if
        not. The difference is infinite if the shapes differ, or if only `got` is not finite.
    """
    if got.shape != wanted.shape:
        return (float("inf"), magnitude(wanted))
    if wanted.dtype.kind != "f":
        different = wanted.astype(np.float64) != got.astype(np.float64)
        return (
            (float(np.abs(wanted.astype(np.float64) - got)[different].max()), magnitude(wanted))
            if different.any()
            else None
        )
    exact = wanted.astype(np.float64) if true is None or true.shape != wanted.shape else true.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(wanted)
    if not np.isfinite(got[finite]).all():
        return (float("inf"), magnitude(wanted))
    if not finite.any():
        return None
    difference = float(np.abs(got[finite] - exact[finite]).max())
    reference_error = float(np.abs(wanted[finite] - exact[finite]).max())
    scale = float(np.abs(exact[finite]).max())
    return (difference, scale) if difference > max(ROUNDING * scale, MULTIPLE * reference_error) else None


def _differs(wanted: Array, got: Array, quantised: bool) -> tuple[float, float] | None:
    if not quantised or got.shape != wanted.shape or wanted.dtype.kind != "f":
        return parts(wanted, got, None)
    noise = float(np.square(got.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted.astype(np.float64)).sum())
    if noise == 0 or signal == 0 or 10 * np.log10(signal / noise) >= QUANTISED_DB:
        return None
    return float(np.abs(got.astype(np.float64) - wanted).max()), magnitude(wanted)
