"""Static int8 by NNCF (Neural Network Compression Framework), in an environment of its own.

NNCF chooses the layers by patterns of its own, corrects biases, and, with `max_error`, leaves layers in float until the
error on the calibration samples is at most so large. `onward runtimes install nncf` makes its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onward.registry.host import environments
from onward.stages.config import paths
from onward.stages.config.techniques import Options
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import Feed, finish, named, producer_nodes, static

OPTIONS = {"max_error": (0.0, 0.02, 0.05, 0.1)}
PREPARED = True
OPERATORS = static.OPERATORS
RESCUES = ("static",)
RANKED_AS = {"max_error": 0.0}

# The program that runs in NNCF's environment.
PROCESS = Path(__file__).parent.parent / "nncf_process.py"
# Characters of NNCF's last line that a message quotes.
QUOTED = 300


def precision(options: Options) -> str:
    """Return the precision of the weights."""
    return "int8"


def skip_reason(graph: GraphProfile, options: Options, runtimes: list[str]) -> str:
    """Say why NNCF makes nothing faster, or is not there; empty if it may."""
    reason = static.skip_reason(graph, options, runtimes)
    if not reason and not environments.python("nncf", paths.root()).exists():
        return "NNCF is not installed: onward runtimes install nncf"
    return reason


def quantize(source: Path, target: Path, calibration: list[Feed], keep: list[str], options: Options) -> None:
    """Quantise a pre-processed graph in NNCF's environment.

    Raises:
        RuntimeError: NNCF failed; the message has its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples, order = Path(folder) / "samples.npz", Path(folder) / "order.json"
        batches: dict[str, Any] = {
            f"{number}/{name}": value for number, feed in enumerate(calibration) for name, value in feed.items()
        }
        np.savez(samples, **batches)
        order.write_text(
            json.dumps(
                {
                    "source": str(source),
                    "target": str(target),
                    "samples": str(samples),
                    "float_nodes": producer_nodes(named(source), keep) if keep else [],
                    "max_error": options["max_error"],
                }
            )
        )
        done = subprocess.run(
            [str(environments.python("nncf", paths.root())), str(PROCESS), str(order)],
            env={**os.environ, "NNCF_CI": "1", "PYTHONPATH": ""},  # NNCF_CI switches its telemetry off
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        raise RuntimeError(f"NNCF: {lines[-1][:QUOTED] if lines else f'the process ended with {done.returncode}'}")
    finish(target)
