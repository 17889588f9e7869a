"""Where an export parts from the PyTorch module that it was made of. Imports torch: call it in a process of its own.

A value is held to the node of the exported program that it was translated from, computed in float32 and in float64:
it parts where it is farther from float64 than rounding explains. A graph that the older exporter made names no such
nodes: there, what the module's own submodules return is what is compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from onward.registry.artifact import onnx_file
from onward.registry.artifact.graph_nodes import origin
from onward.registry.evidence.records import FirstDivergence
from onward.registry.evidence.session_options import SessionOptions
from onward.stages.config.schema import ModelParams
from onward.stages.exporting import torch_exporters
from onward.stages.parity.cases import Case
from onward.stages.parity.check import compare_outputs
from onward.stages.parity.localize import Array, Values, inner_values, parts
from onward.stages.workers.torch_reference import Original
from onward.stages.workers.worker import AS_IT_IS, Worker, WorkerFailure


def against_torch(
    settings: ModelParams, weights: Path, plain: Path, strategy: str, case: Case, real: Values
) -> FirstDivergence:
    """The first node of `plain`, in the graph's order, where ONNX Runtime and PyTorch part."""
    assert settings.build is not None
    original = Original(settings.build, weights, list(settings.inputs), list(settings.outputs))
    model = onnx_file.load_graph(plain)
    outputs, truth = original.answer(case.inputs)
    if strategy.startswith("dynamo"):
        values, wide = _program_values(settings, strategy, original, case, real)
        matches = _by_translation(model, values, wide)
    else:
        values, wide = {}, {}
        matches = _by_module(model, *_module_values(original, case))
    finals = [
        (node, name, outputs[name], truth.get(name))
        for node in model.graph.node
        for name in node.output
        if name in outputs
    ]
    matches += [match for match in finals if match[1] not in {name for _, name, _, _ in matches}]
    order = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    matches.sort(key=lambda match: order[match[1]])
    seen = inner_values(plain, [name for _, name, _, _ in matches], case)
    for node, name, wanted, true in matches:
        if name in seen and (found := parts(wanted, seen[name], true)):
            module, source = origin(node)
            difference, scale = found
            return FirstDivergence(
                case=case.name,
                value=name,
                operator=_operator(node),
                module=module or _scope(node.name),
                source=source,
                difference=difference,
                scale=scale,
                reason=_whose(name, outputs, values, wanted),
            )
    return FirstDivergence(case=case.name, reason=_by_level(plain, case, settings))


def _by_level(plain: Path, case: Case, settings: ModelParams) -> str:
    """What is known where no inner value parts with ONNX Runtime's graph optimisations off: whether they change the
    outputs is asked, not assumed."""
    try:
        off, on = (_outputs(plain, case, options) for options in (AS_IT_IS, SessionOptions(graph_level="all")))
    except WorkerFailure as failure:
        return f"no inner value that could be compared differs from PyTorch's; {failure.reason[:200]}"
    changed = [o.output for o in compare_outputs(off, on, settings.tolerance) if o.verdict != "ok"]
    if changed:
        return (
            "every inner value is right with ONNX Runtime's own graph optimisations off, and with all of them on "
            f"another {', '.join(changed)} comes out: they change the result"
        )
    return (
        "no inner value that could be compared differs from PyTorch's, and ONNX Runtime's own graph optimisations "
        "change no output: where they part was not found"
    )


def _outputs(plain: Path, case: Case, options: SessionOptions) -> Values:
    with Worker.onnx(plain, f"{plain.name}, graph level {options.graph_level}", options=options, timeout=300) as worker:
        return worker.run(case.inputs)


Match = tuple[onnx.NodeProto, str, Array, Array | None]


def _by_translation(model: onnx.ModelProto, values: Values, wide: Values) -> list[Match]:
    """Each value of the graph that is one of the exported program's: torch names the node in the metadata, and the
    last of those translated from one node gives its value."""
    found: dict[str, Match] = {}
    for node in model.graph.node:
        about = {entry.key: entry.value for entry in node.metadata_props}
        name = about.get("pkg.torch.onnx.fx_node", "").removeprefix("%").split(" ")[0]
        if name in values and node.output[0]:
            found[name] = (node, node.output[0], values[name], wide.get(name))
        for output in node.output:  # one of several results, which torch names for the node that picks it
            if output in values and output != name:
                found[output] = (node, output, values[output], wide.get(output))
    return list(found.values())


def _by_module(model: onnx.ModelProto, values: Values, wide: Values) -> list[Match]:
    """The last value of each submodule's scope that has the shape of what the submodule returns."""
    found: dict[str, Match] = {}
    for node in model.graph.node:
        scope = _scope(node.name)
        for path in (scope, *(".".join(scope.split(".")[:n]) for n in range(1, scope.count(".") + 1))):
            if path in values:
                found[path] = (node, node.output[0], values[path], wide.get(path))
    return list(found.values())


def _scope(name: str) -> str:
    """`/encoder/encoder.0/proj/MatMul` to `encoder.0.proj`: the older exporter writes scopes so."""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)


def _program_values(
    settings: ModelParams, strategy: str, original: Any, case: Case, real: Values
) -> tuple[Values, Values]:
    """Every value of the exported program on the case's inputs, in float32 and, where it runs so, in float64."""
    with torch_exporters.gathered_warnings(False):
        _, names, _ = torch_exporters.as_exported(settings, original.module, real)
        program = torch_exporters.dynamo(strategy, settings, original.module, real).exported_program
    arguments = [torch.from_numpy(case.inputs[name].copy()) for name in names]
    values = _interpret(program, arguments, wide=False)
    try:
        wide = _interpret(program, [a.double() if a.is_floating_point() else a for a in arguments], wide=True)
    except (RuntimeError, TypeError, torch.fx.proxy.TraceError):
        wide = {}  # a dtype that the program insists on: PyTorch's own float32 is the measure then
    return values, wide


def _interpret(program: Any, arguments: list[torch.Tensor], wide: bool) -> Values:
    values: Values = {}

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op != "placeholder":
                values[n.name] = result.detach().numpy().copy()
            return result

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if wide:
                args, kwargs = torch.utils._pytree.tree_map(
                    lambda a: torch.float64 if a is torch.float32 else a, (args, kwargs)
                )
            return super().call_function(target, args, kwargs)

    state = {**program.state_dict, **program.constants}
    inputs = iter(arguments)
    feed = []
    for spec in program.graph_signature.input_specs:
        value = state[spec.target] if spec.target in state else next(inputs)
        if wide and isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.double()
        feed.append(value)
    with torch.no_grad():
        Watcher(program.graph_module).run(*feed)
    return values


def _module_values(original: Any, case: Case) -> tuple[Values, Values]:
    """What each submodule returns (the first of several), by its path; those called more than once are left out."""
    values: Values = {}
    calls: dict[str, int] = {}

    def watch(path: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                values[path] = first.detach().numpy().copy()

        return hook

    handles = [m.register_forward_hook(watch(path)) for path, m in original.module.named_modules() if path]
    try:
        original.run(case.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: value for path, value in values.items() if calls[path] == 1}, {}


def _operator(node: onnx.NodeProto) -> str:
    """`Gemm`, or `Squeeze (of aten.lstm.input)` where torch said what it translated."""
    about = {entry.key: entry.value for entry in node.metadata_props}
    target = re.search(r"target=torch\.ops\.([\w.]+)", about.get("pkg.torch.onnx.fx_node", ""))
    return f"{node.op_type} (of {target[1]})" if target else node.op_type


def _whose(name: str, outputs: Mapping[str, Array], values: Values, wanted: Array) -> str:
    """Whether the exported program itself is already wrong at an output of the graph."""
    if (
        name in outputs
        and values
        and not any(
            v.shape == wanted.shape and np.allclose(v, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)
            for v in values.values()
        )
    ):
        return "the exported program departs from the module: torch.export's own doing; try another export.strategy"
    return "ONNX Runtime computes another value here than PyTorch, from inputs that are right"
