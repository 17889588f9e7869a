"""One quantiser a file, all of one shape: `quantize(source, target, calibration)` writes an int8 graph.

`calibration` is a list of feeds (input name to array), whether the technique uses it or not. `NotApplicable` says
why a graph has nothing to gain.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from stages.variants import NotApplicable

Feed = Mapping[str, npt.NDArray[Any]]


def quiet() -> None:
    """Silence advice on the root logger and native warnings about unused initializers; for a process of its own."""
    import onnxruntime

    logging.getLogger().setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)


def require_weights(source: Path, operators: tuple[str, ...]) -> None:
    """Refuse a graph that has none of the operators whose weights this technique turns to int8."""
    graph = onnx.load(source, load_external_data=False).graph
    if not any(node.op_type in operators for node in graph.node):
        raise NotApplicable(f"none of {', '.join(operators)} is in this graph")
