"""Exports a model to ONNX in evaluation mode and describes the file; an ONNX file from elsewhere is copied.

The exporters are tried in turn until the outputs of a file match those of the module, at sizes and on branches that the
exporter did not see. The report says why each earlier exporter failed. The comparison uses the default tolerance, so
that the model's own tolerance does not change the file; the verify stage applies that one. The module runs in the
process that exports it.

The bytes depend only on the model and the toolchain: torch writes the absolute path of every source line into the
graph; these paths are made relative to the repository.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from onward.registry.artifact import graph_nodes, onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence import size_expressions
from onward.registry.evidence.records import ExportAttempt, FileDigest, GraphInfo
from onward.registry.evidence.reports import ExportReport, load
from onward.registry.evidence.reports import TrainReport as Trained
from onward.registry.files import sha256_file
from onward.stages import command, progress
from onward.stages.config import paths
from onward.stages.config.layout import Layout
from onward.stages.config.load import section
from onward.stages.config.schema import Dim, Input, ModelParams, Output, Tolerance, Verify
from onward.stages.exporting import custom_ops, diagnostics, taken_graph, torch_exporters
from onward.stages.parity.check import Expected, answers, check, recall, save_answers, sentence
from onward.stages.parity.declared_shapes import misdeclared
from onward.stages.parity.one_by_one import frozen_batch
from onward.stages.parity.reference import onnx_original, trained_file
from onward.stages.parity.reference_answers import cases, real_example, real_inputs, real_inputs_of
from onward.stages.parity.size_hints import multiples
from onward.stages.parity.sizes import Sizes
from onward.stages.reports import blocked
from onward.stages.workers import circumstances, isolated_call
from onward.stages.workers.worker import AS_IT_IS, Tensors, Worker, WorkerFailure

if TYPE_CHECKING:
    from onward.stages.workers.torch_reference import Original

T = TypeVar("T")

# The strategy that leaves the opset of an ONNX file from elsewhere as it is.
TAKEN = "taken"
# Number of cases on which a converted file is compared with the original; verify compares all.
FEW = 6
# Seconds. An export takes minutes at most; a hang counts as the model's failure.
TIMEOUT = 1800.0


@dataclass
class Made:
    """The result of one export strategy.

    Attributes:
        attempt: The entry for the report.
        graph: Description of the file; None if there is none.
        warnings: The exporter's warnings.
        findings: Remarks for the report.
        sound: Whether the file is valid and matches params.yaml.
        hopeless: Whether every other strategy would fail for the same reason.
    """

    attempt: ExportAttempt
    graph: GraphInfo | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    sound: bool = False
    hopeless: bool = False


def export(model: str, folder: Path) -> ExportReport:
    """Export a model to ONNX with named dynamic dimensions, check the file's structure, and describe it.

    Tries the strategies of export.strategy in turn, up to the first whose file matches the module's outputs.
    Writes build/MODEL/export/: model.onnx (with model.onnx.data if larger than 2 GB) and report.json.
    """
    settings = section(model, "export")
    reason = blocked(model, "train", "data")
    if reason:
        return ExportReport(model=model, status="not attempted", reason=reason)
    target = folder / "model.onnx"
    libraries = custom_ops.taken_along(settings, f"models.{model}", folder)
    circumstances.adopt(libraries=libraries)
    if settings.is_torch:
        made, attempts = _ladder(model, settings, folder)
        how = torch_exporters.HOW[made.attempt.strategy]
    else:
        made, attempts = _taken(model, settings, folder)
        how = _origin(model)
        if made.attempt.strategy in taken_graph.CONVERTERS:
            how += f", converted to opset {settings.export.opset} by {made.attempt.strategy}"
    if not made.sound:
        reasons = [f"{attempt.strategy}: {attempt.reason}" for attempt in attempts[1:]]
        hint = _size_hint(model, settings) if settings.is_torch else ""
        return ExportReport(
            model=model, status="failed", reason="; ".join([hint + made.attempt.reason, *reasons]), attempts=attempts
        )
    return ExportReport(
        model=model,
        status="passed",
        how=how,
        attempts=attempts,
        files=onnx_file.digests(target),
        graph=made.graph,
        warnings=list(made.warnings),
        custom_ops=[FileDigest.of(library, folder) for library in libraries],
        findings=[*made.findings, *diagnostics.findings(onnx_file.load_graph(target), settings.is_torch)],
    )


def _ladder(model: str, settings: ModelParams, folder: Path) -> tuple[Made, list[ExportAttempt]]:
    """Try the strategies in turn, and move the best file to `folder`.

    The best is the first whose file matches the module's outputs, else the first with a sound file, which verify will
    judge, else the first.
    """
    pinned = settings.export.strategy
    strategies = torch_exporters.STRATEGIES if pinned == "auto" else (pinned,)
    tried: list[Made] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rungs-") as temporary:
        for strategy in strategies:
            progress.show("exporting", strategy)
            own = Path(temporary) / strategy
            own.mkdir()
            answered = Path(temporary) / "answers.npz" if pinned == "auto" else None
            tried.append(_attempt(model, settings, strategy, own, answered))
            if tried[-1].attempt.status == "passed":
                break
        return _best(tried, Path(temporary), folder), [made.attempt for made in tried]


def _best(tried: list[Made], temporary: Path, folder: Path) -> Made:
    """The best of the tried strategies, whose files are moved from a folder of its name to `folder`."""
    best = next((m for m in reversed(tried) if m.attempt.status == "passed"), None)
    best = best or next((m for m in tried if m.sound), tried[0])
    if best.sound:
        for path in (temporary / best.attempt.strategy).iterdir():
            path.replace(folder / path.name)
    return best


def _attempt(model: str, settings: ModelParams, strategy: str, folder: Path, answered: Path | None) -> Made:
    """Export by one strategy; with `answered`, compare the file with the module's outputs, which are kept there."""
    weights = trained_file(model, settings)
    target = folder / "model.onnx"
    try:
        written = isolated_call.call(TIMEOUT, _export, model, settings, strategy, weights, target, answered)
        baked = diagnostics.traced(written.baked)
        if baked and not settings.export.allow_traced_constants:
            return Made(ExportAttempt(strategy=strategy, status="failed", reason=f"{baked}: {diagnostics.UNTRACED}"))
        graph = _sound(model, settings, target, weights)
    except WorkerFailure as failure:
        return Made(ExportAttempt(strategy=strategy, status="failed", reason=diagnostics.explain(failure.reason)))
    except _Unsound as found:
        return Made(ExportAttempt(strategy=strategy, status="failed", reason=str(found)))
    findings = (f"{baked}; export.allow_traced_constants allows it",) if baked else ()
    made = Made(ExportAttempt(strategy=strategy, status="passed"), graph, tuple(written.warnings), findings, sound=True)
    if answered is not None:
        expected = recall(answered, cases(model, settings, Verify()))
        with Worker.onnx(target, f"{model} by {strategy}", timeout=Verify().timeout) as candidate:
            mismatch = misdeclared(expected, settings.outputs, settings.dims)
            mismatch = mismatch or sentence(check(candidate, expected, Tolerance()))
        if mismatch:
            reason = "; ".join(filter(None, (f"outputs differ from the module's: {mismatch}", baked)))
            made.attempt = ExportAttempt(strategy=strategy, status="failed", reason=reason)
    return made


def _taken(model: str, settings: ModelParams, folder: Path) -> tuple[Made, list[ExportAttempt]]:
    """Take an ONNX file from elsewhere: converted to the declared opset if a converter can do that, else as it is."""
    given = trained_file(model, settings)
    try:
        with onnx_original(model, settings, Verify(evaluator=False)) as original:
            original.start()
    except WorkerFailure as failure:
        reason = diagnostics.explain(failure.reason, "the file does not load, even without optimisations", False)
        reason = "; ".join(custom_ops.without_library(onnx_file.load_graph(given), settings)) or reason
        return Made(ExportAttempt(strategy=TAKEN, status="failed", reason=reason)), []
    opset, wanted = taken_graph.opset(onnx_file.load_graph(given)), settings.export.opset
    ways = [TAKEN]
    if opset != wanted and sum(file.stat().st_size for file in onnx_file.files(given)) < onnx_file.EXTERNAL_DATA_BYTES:
        ways = [*taken_graph.CONVERTERS, TAKEN]
    tried: list[Made] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".rungs-") as temporary:
        for way in ways:
            progress.show("bringing the file into the declared form", way)
            (Path(temporary) / way).mkdir()
            tried.append(_take(model, settings, way, given, Path(temporary) / way / "model.onnx"))
            if tried[-1].attempt.status == "passed" or tried[-1].hopeless:
                break
        best = _best(tried, Path(temporary), folder)
    if frozen_batch(onnx_file.load_graph(given), settings) and best.attempt.status == "failed":
        best.sound, best.attempt = (
            False,
            best.attempt.model_copy(update={"reason": _one_at_a_time(given, settings, best)}),
        )
    elif best.attempt.strategy == TAKEN and len(tried) > 1:
        reasons = "; ".join(f"{made.attempt.strategy}: {made.attempt.reason}" for made in tried[:-1])
        stays = f"the opset stays {opset}, not {wanted} (export.opset), because no converter can change that: {reasons}"
        best = replace(best, findings=(*best.findings, stays))
    return best, [made.attempt for made in tried] if len(tried) > 1 else []


def _take(model: str, settings: ModelParams, way: str, given: Path, target: Path) -> Made:
    """Copy the file to `target` in one way: converted, or as it is."""
    attempt = ExportAttempt(strategy=way, status="passed")
    try:
        onnx_file.take_in(given, target)
        graph = onnx_file.load_graph(target)
        findings = taken_graph.tidy(graph, settings, settings.export.keep_initializers_as_inputs)
        problems = [*taken_graph.unfit(graph), *custom_ops.without_library(graph, settings)]
        if problems:
            raise _Unsound("; ".join(problems), declared=True)
        if way != TAKEN:
            graph = isolated_call.call(TIMEOUT, taken_graph.converted, graph, settings.export.opset, way)
        target.write_bytes(graph.SerializeToString(deterministic=True))
        made = Made(attempt, _sound(model, settings, target, given), findings=tuple(findings), sound=True)
        renamed = frozen_batch(onnx_file.load_graph(given), settings)
        mismatch = _mismatch(model, settings, target) if way != TAKEN or renamed else ""
    except WorkerFailure as failure:
        return Made(attempt.model_copy(update={"status": "failed", "reason": failure.reason[:300]}))
    except _Unsound as found:
        return Made(attempt.model_copy(update={"status": "failed", "reason": str(found)}), hopeless=found.declared)
    if mismatch:
        reason = f"outputs differ from the original file's: {mismatch}"
        made.attempt = attempt.model_copy(update={"status": "failed", "reason": reason})
    return made


def _one_at_a_time(given: Path, settings: ModelParams, made: Made) -> str:
    """Why a file whose batch is fixed at 1 cannot be used with other sizes, and the lines to write."""
    graph = onnx_file.describe(given)
    lines = [
        f"{group}: {{{', '.join(f'{spec.name}: {{shape: [{_listed(spec.shape)}]}}' for spec in specs)}}}"
        for group, specs in (("inputs", graph.inputs), ("outputs", graph.outputs))
    ]
    return (
        f"the file takes one sample at a time, and fails with more ({made.attempt.reason}): declare that in "
        f"params.yaml, {'; '.join(lines)}, or use a file with a dynamic batch"
    )


def _listed(shape: list[int | str]) -> str:
    return ", ".join(map(str, shape))


def _mismatch(model: str, settings: ModelParams, target: Path) -> str:
    """How a converted file differs from the original in a few cases, in words; empty if it does not."""
    known = Verify(evaluator=False, draws=1, samples=FEW)
    few = [case for case in cases(model, settings, known) if not case.probe]
    few.sort(key=lambda case: (case.made_up, sum(value.size for value in case.inputs.values())))
    few = few[:FEW]
    original = onnx_original(model, settings, known)
    candidate = Worker.onnx(target, f"{model}, converted,", options=AS_IT_IS, timeout=known.timeout)
    with original, candidate:
        with contextlib.suppress(WorkerFailure):  # the original refuses a case: `answers` finds out why
            plain = [Expected(case, original.run(case.inputs)) for case in few]
            if not sentence(check(candidate, plain, Tolerance())):
                return ""
        # `answers` takes several times as long. It also finds out what rounding explains.
        return sentence(check(candidate, answers(original, few, real_inputs(model, settings)), Tolerance()))


def _export(
    model: str, settings: ModelParams, strategy: str, weights: Path, target: Path, answered: Path | None
) -> torch_exporters.Written:
    """Export, and record the module's outputs for every case unless they are known; runs in a separate process."""
    written = torch_exporters.write(strategy, settings, weights, target, real_example(model, settings))
    if answered is not None and not answered.exists():
        from onward.stages.workers.torch_reference import Original

        assert settings.build is not None
        original = Original(settings.build, weights, list(settings.inputs), list(settings.outputs))
        asked = answers(_InProcess(original), cases(model, settings, Verify()), real_inputs(model, settings))
        save_answers(asked, answered)
    return written


def _size_hint(model: str, settings: ModelParams) -> str:
    """The lines of params.yaml to change if the module itself refuses declared sizes; empty if it does not."""
    try:
        found = isolated_call.call(TIMEOUT, _multiples, model, settings, trained_file(model, settings))
    except WorkerFailure:  # the module does not run at all; the reasons of the attempts say why
        return ""
    if not found:
        return ""
    return f"forward() accepts only some of the declared sizes: write {'; '.join(found)} in params.yaml; "


def _multiples(model: str, settings: ModelParams, weights: Path) -> list[str]:
    """The dimensions whose sizes must be multiples of a number, as lines of params.yaml; runs in a separate process."""
    from onward.stages.workers.torch_reference import Original

    assert settings.build is not None
    original = Original(settings.build, weights, list(settings.inputs), list(settings.outputs))
    given = real_inputs_of(model, settings)

    def accepts(sizes: Sizes) -> bool:
        try:
            original.run(given(sizes))
        except Exception:  # the team's module may raise anything
            return False
        return True

    return multiples(accepts, settings.free_dims)


class _InProcess:
    """A module in this process with the methods of a worker; its errors become WorkerFailure."""

    def __init__(self, original: Original) -> None:
        self.original = original

    def run(self, inputs: Tensors) -> dict[str, Any]:
        """Compute the outputs, by name."""
        return self._asked(self.original.run, inputs)

    def answer(self, inputs: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
        """Compute the outputs as they are and in float64, by name."""
        return self._asked(self.original.answer, inputs)

    def shake(self, seed: int | None) -> bool:
        """Move every float weight by one unit in the last place; None restores them."""
        self.original.shake(seed)
        return True

    @property
    def chooses(self) -> bool:
        """Whether a run after `shake` met an operator that chooses among equal values."""
        return bool(self.original.met)

    def _asked(self, ask: Callable[[Tensors], T], inputs: Tensors) -> T:
        try:
            return ask(inputs)
        except Exception as error:  # the team's module may raise anything
            raise WorkerFailure("error", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


class _Unsound(Exception):
    """A file that must not be released; the message says why."""

    def __init__(self, reason: str, declared: bool = False) -> None:
        super().__init__(reason)
        self.declared = declared  # whether the file differs from params.yaml: no conversion changes that


def _sound(model: str, settings: ModelParams, target: Path, weights: Path) -> GraphInfo:
    """Finish the file and check its structure.

    Raises:
        _Unsound: It is invalid, differs from params.yaml, or is unfit for deployment.
    """
    try:
        finish(model, settings, target, sha256_file(weights))
        onnx_file.check(target)
    except UsageError as error:  # the file is our own: this is a failed export, not a mistake of the user
        raise _Unsound(diagnostics.explain(str(error), "the checker", settings.is_torch)) from error
    graph = onnx_file.describe(target)
    differences = list(_differences(settings, graph))
    found = [*differences, *diagnostics.problems(onnx_file.load_graph(target), settings.is_torch)]
    if found:
        raise _Unsound("; ".join(found), declared=bool(differences))
    return graph


def finish(model: str, settings: ModelParams, path: Path, weights: str) -> None:
    """Make source paths relative, and write the model's name, inputs, outputs and weights digest into its metadata.

    Args:
        model: Name of the model.
        settings: Its settings.
        path: The ONNX file, which is rewritten.
        weights: SHA-256 digest of the trained file.

    Raises:
        UsageError: The file is unreadable, or its external data is missing.
    """
    onnx_file.files(path)  # raises if anything is missing
    graph = onnx_file.load_graph(path)
    for node in graph_nodes.nodes(graph):
        for entry in node.metadata_props:
            if entry.key.endswith("stack_trace"):
                entry.value = paths.without_paths(entry.value)
    layout = Layout.of(settings)
    about = {
        "onward.name": model,
        "onward.inputs": json.dumps({n: _declared(spec, layout.inputs[n]) for n, spec in settings.inputs.items()}),
        "onward.outputs": json.dumps({n: _declared(spec, layout.outputs[n]) for n, spec in settings.outputs.items()}),
        "onward.dims": json.dumps({name: _limits(dim) for name, dim in settings.dims.items() if dim.size is None}),
        "onward.weights_sha256": weights,
    }
    if settings.states:
        about["onward.states"] = json.dumps(settings.states)
    kept = [entry for entry in graph.metadata_props if entry.key not in about]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in about.items())
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _declared(spec: Input | Output, axis: int | None) -> dict[str, Any]:
    """What params.yaml declares of an input or output; `value` and the axis of samples only if they are unusual."""
    fixed = {"value"} if getattr(spec, "value", None) is None else set()
    found = spec.model_dump(exclude={"sample_axis", *fixed})
    return found if axis == 0 else {**found, "sample_axis": axis}


def _limits(dim: Dim) -> dict[str, int]:
    """The limits of a dimension."""
    return {"min": dim.min, "max": dim.max, **({"multiple_of": dim.multiple_of} if dim.multiple_of > 1 else {})}


def _differences(settings: ModelParams, graph: GraphInfo) -> Iterator[str]:
    """Differences of the graph's inputs and outputs from params.yaml."""
    for kind, declared, found in (
        ("input", settings.inputs, {spec.name: spec for spec in graph.inputs}),
        ("output", settings.outputs, {spec.name: spec for spec in graph.outputs}),
    ):
        if list(declared) != list(found):
            yield f"the graph has the {kind}s {', '.join(found)}; params.yaml declares {', '.join(declared)}"
            continue
        for name, spec in declared.items():
            dtype = getattr(spec, "dtype", None)
            if dtype is not None and dtype != found[name].dtype:
                yield f"{kind} {name} is {found[name].dtype} in the graph, {dtype} in params.yaml"
            shape = found[name].shape
            if len(shape) != len(spec.shape):
                yield f"{kind} {name} has shape {shape} in the graph, {list(spec.shape)} in params.yaml"
                continue
            for wanted, size in zip(spec.shape, shape, strict=True):
                named = size_expressions.names(wanted) if isinstance(wanted, str) else []
                varies = any(settings.dims[part].varies for part in named)
                if varies and isinstance(size, int):
                    yield (
                        f"{kind} {name}: the dimension {wanted!r} is declared dynamic; the graph froze it at {size}: "
                        + _unfrozen(settings, f"{kind}s", name, shape)
                    )
                elif isinstance(wanted, int) and isinstance(size, int) and wanted != size:
                    yield f"{kind} {name} has shape {shape} in the graph, {list(spec.shape)} in params.yaml"


def _unfrozen(settings: ModelParams, group: str, name: str, shape: list[int | str]) -> str:
    """The remedy for a frozen dimension of an input or output."""
    if settings.is_torch:
        return "take the size from x.shape in forward() instead of hard-coding it, or declare it fixed"
    line = f"{group}: {{{name}: {{shape: [{_listed(shape)}]}}}}"
    return f"declare it fixed in params.yaml, {line}, or use a file in which it is dynamic"


def _origin(model: str) -> str:
    """How the train stage obtained the file."""
    return load(Trained, paths.build(model, "train") / "report.json").how


if __name__ == "__main__":
    command.run("export", export)
