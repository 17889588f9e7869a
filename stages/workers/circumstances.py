"""What all sessions of the current model need: libraries of custom operators, and a limit of graph optimisation.

A stage processes one model. It sets these before it starts a worker, and every worker of the stage receives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onward.registry.evidence.session_options import GraphLevel, SessionOptions


@dataclass
class Circumstances:
    """The needs of the current model.

    Attributes:
        graph_level: The highest level of graph optimisation at which ONNX Runtime computes the model correctly; None if
            every level does.
        libraries: Native libraries with custom operators.
    """

    graph_level: GraphLevel | None = None
    libraries: tuple[Path, ...] = ()


CURRENT = Circumstances()


def required() -> SessionOptions:
    """The session options that every variant of the model needs."""
    return SessionOptions().limited_to(CURRENT.graph_level)


def adopt(graph_level: GraphLevel | None = None, libraries: tuple[Path, ...] = ()) -> None:
    """Set the needs of the model that this process handles from now on."""
    CURRENT.graph_level, CURRENT.libraries = graph_level, libraries
