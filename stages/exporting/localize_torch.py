"""Finds the first node where an export differs from its PyTorch module. Imports torch: call it in a separate process.

Each value of the graph is compared with the node of the exported program that it was translated from. PyTorch computes
that node in float32 and in float64. A value differs if its distance from float64 is larger than rounding explains.
Graphs of the TorchScript exporter do not name such nodes. Their values are compared with the outputs of the module's
submodules instead.
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
    """Find the first node of `plain`, in graph order, where ONNX Runtime and PyTorch differ.

    Args:
        settings: The model's settings, with `build`.
        weights: The trained safetensors file.
        plain: The exported ONNX file.
        strategy: The export strategy that wrote `plain`, one of `torch_exporters.STRATEGIES`.
        case: The inputs to compare on.
        real: Real inputs of the sizes of `torch_exporters.example`, for modules that reject made-up ones.
    """
    assert settings.build is not None
    original = Original(settings.build, weights, list(settings.inputs), list(settings.outputs))
    model = onnx_file.load_graph(plain)
    outputs, outputs_float64 = original.answer(case.inputs)
    if strategy.startswith("dynamo"):
        values, wide = _program_values(settings, strategy, original, case, real)
        matches = _by_translation(model, values, wide)
    else:
        values, wide = {}, {}
        matches = _by_module(model, *_module_values(original, case))
    finals = [
        (node, name, outputs[name], outputs_float64.get(name))
        for node in model.graph.node
        for name in node.output
        if name in outputs
    ]
    matches += [match for match in finals if match[1] not in {name for _, name, _, _ in matches}]
    order = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    matches.sort(key=lambda match: order[match[1]])
    computed = inner_values(plain, [name for _, name, _, _ in matches], case)
    for node, name, expected, expected_float64 in matches:
        if name in computed and (found := parts(expected, computed[name], expected_float64)):
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
                reason=_whose(name, outputs, values, expected),
            )
    return FirstDivergence(case=case.name, reason=_by_level(plain, case, settings))


def _by_level(plain: Path, case: Case, settings: ModelParams) -> str:
    """Explain a difference that no inner value shows with ONNX Runtime's graph optimisations off.

    Measures whether the optimisations change the outputs.
    """
    try:
        off, on = (_outputs(plain, case, options) for options in (AS_IT_IS, SessionOptions(graph_level="all")))
    except WorkerFailure as failure:
        return f"no inner value that could be compared differs from PyTorch's; {failure.reason[:200]}"
    changed = [o.output for o in compare_outputs(off, on, settings.tolerance) if o.verdict != "ok"]
    if changed:
        return (
            "every inner value is right with ONNX Runtime's own graph optimisations off; with all of them on, "
            f"{', '.join(changed)} differs: they change the result"
        )
    return (
        "no inner value that could be compared differs from PyTorch's, and ONNX Runtime's own graph optimisations "
        "change no output: the place of the difference was not found"
    )


def _outputs(plain: Path, case: Case, options: SessionOptions) -> Values:
    with Worker.onnx(plain, f"{plain.name}, graph level {options.graph_level}", options=options, timeout=300) as worker:
        return worker.run(case.inputs)


# A node, the name of its value, and what PyTorch computes for it in float32 and float64.
Match = tuple[onnx.NodeProto, str, Array, Array | None]


def _by_translation(model: onnx.ModelProto, values: Values, wide: Values) -> list[Match]:
    """Match the graph's values with those of the exported program.

    torch names the program's node in the metadata of each ONNX node. One program node may become several ONNX nodes;
    the last of them computes its value.
    """
    found: dict[str, Match] = {}
    for node in model.graph.node:
        name = _fx_node(node).removeprefix("%").split(" ")[0]
        if name in values and node.output[0]:
            found[name] = (node, node.output[0], values[name], wide.get(name))
        for output in node.output:  # torch names one of several results after the node that selects it
            if output in values and output != name:
                found[output] = (node, output, values[output], wide.get(output))
    return list(found.values())


def _by_module(model: onnx.ModelProto, values: Values, wide: Values) -> list[Match]:
    """Match the last value in each submodule's scope with the submodule's output."""
    found: dict[str, Match] = {}
    for node in model.graph.node:
        scope = _scope(node.name)
        for path in (scope, *(".".join(scope.split(".")[:n]) for n in range(1, scope.count(".") + 1))):
            if path in values:
                found[path] = (node, node.output[0], values[path], wide.get(path))
    return list(found.values())


def _scope(name: str) -> str:
    """The module path in a TorchScript node name: `/encoder/encoder.0/proj/MatMul` gives `encoder.0.proj`."""
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
    """Every value of the exported program on the case's inputs, in float32 and, if possible, in float64."""
    with torch_exporters.gathered_warnings(False):
        _, names, _ = torch_exporters.as_exported(settings, original.module, real)
        program = torch_exporters.dynamo(strategy, settings, original.module, real).exported_program
    arguments = [torch.from_numpy(case.inputs[name].copy()) for name in names]
    values = _interpret(program, arguments, wide=False)
    try:
        wide = _interpret(program, [a.double() if a.is_floating_point() else a for a in arguments], wide=True)
    except (RuntimeError, TypeError, torch.fx.proxy.TraceError):
        wide = {}  # the program fixes a dtype: float32 is the only reference
    return values, wide


def _interpret(program: Any, arguments: list[torch.Tensor], wide: bool) -> Values:
    """Run an exported program node by node and keep every tensor, by node name; `wide` computes in float64."""
    values: Values = {}

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            """Run one node and keep its tensor."""
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and n.op != "placeholder":
                values[n.name] = result.detach().numpy().copy()
            return result

        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            """Call an operator, with float64 in place of any explicit float32 dtype."""
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
    """Each submodule's output (the first of several), by its path. Submodules called more than once are left out."""
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
    """`Gemm`, or `Squeeze (of aten.lstm.input)` if torch recorded the operator that it translated."""
    target = re.search(r"target=torch\.ops\.([\w.]+)", _fx_node(node))
    return f"{node.op_type} (of {target[1]})" if target else node.op_type


def _fx_node(node: onnx.NodeProto) -> str:
    """The text of the program node that torch translated; empty if it is not recorded."""
    return next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.fx_node"), "")


def _whose(name: str, outputs: Mapping[str, Array], values: Values, wanted: Array) -> str:
    """Say whether torch.export or ONNX Runtime causes the difference at a value."""
    if (
        name in outputs
        and values
        and not any(
            v.shape == wanted.shape and np.allclose(v, wanted, rtol=1e-3, atol=1e-5, equal_nan=True)
            for v in values.values()
        )
    ):
        return "torch.export's program already differs from the module; try another export.strategy"
    return "ONNX Runtime's value differs from PyTorch's here, although all values compared before it are right"
