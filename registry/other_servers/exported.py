"""A checked version, and what another server needs to know about it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.registry.artifact import onnx_file
from onward.registry.artifact.replay import BUNDLE, without_batches
from onward.registry.artifact.serving_plan import Served, Serving
from onward.registry.errors import OnwardError, Refused, UsageError
from onward.registry.evidence.records import SweepPoint, TensorSpec
from onward.registry.evidence.reports import BenchmarkReport, load
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, TENSORRT
from onward.registry.inference.inputs import declared, declared_shape, declared_sizes, documented, sample_axis
from onward.registry.inference.session import locate
from onward.registry.names import NAME_RULE, is_name
from onward.registry.npz import arrays

# The providers that ONNX Runtime has in other servers. OpenVINO itself is not among them.
PROVIDERS = (CPU, CUDA, TENSORRT, OPENVINO)


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: its name.
        dtype: NumPy's name of its type.
        shape: each dimension is a size, a name, or None if it is not known.
        samples: the axis that counts samples; None if it has none.
        described: whether the version documents it.
    """

    name: str
    dtype: str
    shape: Sequence[int | str | None]
    samples: int | None
    described: bool


@dataclass(frozen=True)
class Exported:
    """A version whose files were checked.

    Attributes:
        target: how the user named it.
        name: the model's name on the other server.
        version: the version's number there.
        sha256: the digest of the model; "" for a file without a manifest.
        files: the graph, and the files with its external data.
        served: the provider and the session options.
        inputs: the inputs of the graph.
        outputs: its outputs.
        sizes: the smallest and the largest documented size of each named dimension, and the number that divides them.
        without_batches: why batches of it give other answers; "" if they do not.
        recorded: the recorded inputs; empty if there are none.
        sweep: the batch sweep of the benchmark; empty if it is not known.
        knee: the sizes above which larger batches gain almost no throughput; None if they are not known.
        notes: what the user should know.
    """

    target: str
    name: str
    version: int
    sha256: str
    files: Sequence[Path]
    served: Served
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    sizes: Mapping[str, tuple[int, int, int]]
    without_batches: str = ""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    sweep: Sequence[SweepPoint] = ()
    knee: Mapping[str, int] | None = None
    notes: Sequence[str] = ()


def read(target: str, name: str = "", version: int | None = None, runtime: str = "") -> Exported:
    """Find a version, and check its digests, and its signature where its environment requires one.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or the path of an .onnx file or of a folder that contains one.
        name: the model's name on the other server; "" for its own name.
        version: the number of the version there; None for its own number, and 1 for a file.
        runtime: the runtime whose winner is exported; "" for the first one that other servers have.

    Raises:
        UsageError: there is no such version or runtime, or the file has no valid name.
        Refused: the files differ from the published ones, or the version needs native libraries.
        StoreUnreachable: the MLflow store did not answer.
    """
    path, origin, serving = locate(target)
    folder = path.parent
    served, notes = _served(serving, path, runtime)
    if served.custom_ops or (serving is not None and serving.libraries):
        libraries = ", ".join(served.custom_ops or (serving.libraries if serving else ()))
        raise Refused(
            f"{target}: the version needs native libraries with custom operators ({libraries}), which run code in the "
            "other server and have to be built for it: install them there and serve the version by hand"
        )
    graph = folder / served.file
    onnx_file.check(graph, target)
    about = onnx_file.describe(graph)
    inputs = _tensors(about.inputs, about.metadata.get("onward.inputs", ""))
    outputs = _tensors(about.outputs, about.metadata.get("onward.outputs", ""))
    bundle = folder / BUNDLE / "inputs.npz"
    sweep, knee = _sweep(origin, served, notes)
    return Exported(
        target=target,
        name=_name(target, name or str(origin.get("model", "")) or path.stem),
        version=version or int(origin.get("version") or 1),
        sha256=str(origin.get("sha256", "")),
        files=onnx_file.files(graph),
        served=served,
        inputs=inputs,
        outputs=outputs,
        sizes=declared_sizes(about.metadata.get("onward.dims", "")),
        without_batches=without_batches(folder),
        recorded=arrays(bundle) if bundle.is_file() else {},
        sweep=sweep,
        knee=knee,
        notes=notes,
    )


def _name(target: str, name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{target}: {name!r} cannot be a model's name on another server: {NAME_RULE}; give --name")
    return name


def _served(serving: Serving | None, path: Path, runtime: str) -> tuple[Served, list[str]]:
    """What is exported, and notes on what is faster but cannot be exported."""
    known = dict(serving.root) if serving else {}
    if runtime and runtime not in known:
        there = ", ".join(known) or "none"
        raise UsageError(f"--runtime {runtime}: the version has no winner for it; it has {there}")
    # Another server does not choose by the class of its machine.
    wanted = {runtime: known[runtime]} if runtime else {name: one for name, one in known.items() if one.host is None}
    notes: list[str] = []
    for name, served in wanted.items():
        if served.provider in PROVIDERS:
            return served, notes
        notes.append(f"{name} is faster, but {served.provider} itself is no provider of ONNX Runtime")
    if runtime:
        raise UsageError(f"--runtime {runtime}: {known[runtime].provider} is no provider of ONNX Runtime")
    return Served.model_construct(file=path.name, provider=CPU), notes


def _tensors(specs: Sequence[TensorSpec], documentation: str) -> list[Tensor]:
    about = declared(documentation)
    found = []
    for spec in specs:
        declaration = about.get(spec.name)
        shape = documented([None if size == "?" else size for size in spec.shape], declared_shape(declaration))
        axis = sample_axis(declaration, len(shape))
        found.append(Tensor(spec.name, spec.dtype, shape, axis, declaration is not None))
    return found


def _sweep(
    origin: Mapping[str, Any], served: Served, notes: list[str]
) -> tuple[Sequence[SweepPoint], Mapping[str, int] | None]:
    """The batch sweep of the exported winner. Without the reports of the benchmark, a note says so."""
    from onward.registry.store.store import Store

    model, version = origin.get("model"), origin.get("version")
    if not model or not version:
        return (), None
    try:
        store = Store(create=False, direct=True)
        candidate = store.candidate(str(model), int(version))
        run = candidate.evidence.get("run_id", "") if candidate else ""
        with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
            folder = store.reports(run, Path(temporary))
            report = load(BenchmarkReport, folder / "benchmark.json") if folder else None
    except OnwardError as error:
        notes.append(f"no dynamic batching, because the reports of the benchmark cannot be read: {error}")
        return (), None
    if report is None or candidate is None:
        notes.append("no dynamic batching, because the version's run has no reports of the benchmark")
        return (), None
    variant = candidate.evidence.get("variant", "")
    swept = [
        one for one in report.measurements if one.provider == served.provider and one.scenarios and one.scenarios.sweep
    ]
    # The benchmark sweeps the fastest finalist and the plain export.
    swept.sort(key=lambda one: (one.variant != variant, one.options != served.options))
    if not swept or swept[0].scenarios is None:
        notes.append("no dynamic batching, because the benchmark has no batch sweep on this provider")
        return (), None
    if swept[0].variant != variant:
        notes.append(f"dynamic batching follows the batch sweep of {swept[0].variant}")
    return swept[0].scenarios.sweep, swept[0].scenarios.knee
