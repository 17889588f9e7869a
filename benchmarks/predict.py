"""Measure the overhead of `InferenceSession.predict` over ONNX Runtime's `session.run`, and the cost of each check.

    python -m benchmarks.predict [--rounds 400] [--wanted 15] [--out FILE]

The graph is that of the shipped MLP, with the metadata that export writes. All calls use one loaded session in one
process, by turns, in rounds of random order. The table gives the median of the rounds' differences in microseconds
and its 95 % bootstrap interval. It is written to benchmarks/predict.md, or to --out FILE. The exit code is 1 if a
whole interval is above the limit.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onward.registry.host import hardware
from onward.registry.inference.inputs import Inputs, Validate
from onward.registry.inference.session import InferenceSession

RESULTS = Path(__file__).parent / "predict.md"
WANTED_US = 15.0
# The metadata that export writes for the shipped classifier, and the same with a range of values.
SHIPPED = {
    "onward.inputs": json.dumps({"image": {"dtype": "float32", "shape": ["batch", 784], "range": None}}),
    "onward.dims": json.dumps({"batch": {"min": 1, "max": 64}}),
}
RANGED = {**SHIPPED, "onward.inputs": SHIPPED["onward.inputs"].replace("null", "[0, 1]")}
CHECKS: tuple[Validate, ...] = ("off", "shape", "strict")
RUNS = 50  # calls per turn, which takes some milliseconds


def mlp(path: Path) -> Path:
    """Write the graph of the shipped classifier: image [batch, 784], 256 hidden units, logits [batch, 10]."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (784, 256), "b1": (256,), "w2": (256, 10), "b2": (10,)}
    stored = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 28, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Gemm", ["image", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
    ]
    values = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 784])]
    results = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])]
    graph = helper.make_graph(nodes, "mlp", values, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, SHIPPED)
    onnx.save(model, path)
    return path


def turn(call: Callable[[], object]) -> float:
    """The median of RUNS calls, in microseconds."""
    clock, took = time.perf_counter, []
    for _ in range(RUNS):
        start = clock()
        call()
        took.append(clock() - start)
    return float(np.median(took)) * 1e6


def overhead(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """The microseconds of each call by name, one figure per round. Each round has a random order."""
    order = random.Random(0)
    for call in ways.values():
        turn(call)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        names = list(ways)
        order.shuffle(names)
        for name in names:
            found[name].append(turn(ways[name]))
    return found


def interval(differences: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval (low, high), by the percentile bootstrap (Efron, 1979)."""
    values = np.asarray(differences)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(np.median(values)), float(low), float(high)


Row = tuple[str, float, float, float, float]


def measure(rounds: int) -> list[Row]:
    """Measure every way of calling `predict`.

    Returns:
        for each: name, microseconds of the bare run, microseconds more, and the interval of these (low, high).
    """
    with tempfile.TemporaryDirectory() as temporary:
        session = InferenceSession(mlp(Path(temporary) / "mlp.onnx"))
        bare = session._loaded._session  # one session: two would wait for each other's threads
        rows = []
        for batch, x in inputs():
            ways: dict[str, Callable[[], Any]] = {
                "bare": partial(bare.run, ["logits"], {"image": x}),
                "predict(x)": partial(session.predict, x),
                "predict(image=x)": partial(session.predict, image=x),
                "predict({'image': x})": partial(session.predict, {"image": x}),
            }
            rows += compared(ways, rounds, batch)
        return rows


def measure_checks(rounds: int) -> list[Row]:
    """Measure every value of `validate` against "off", on a model with a documented range; rows as in `measure`."""
    with tempfile.TemporaryDirectory() as temporary:
        loaded = InferenceSession(mlp(Path(temporary) / "mlp.onnx"))._loaded
        rows = []
        for batch, x in inputs():
            ways: dict[str, Callable[[], Any]] = {}
            for check in CHECKS:
                same = copy.copy(loaded)  # one session: two would wait for each other's threads
                same._inputs = Inputs(same._session.get_inputs(), RANGED, check)
                ways[check] = partial(same.predict, (x,), {})
            rows += compared(ways, rounds, batch)
        return rows


def inputs() -> Iterator[tuple[int, Any]]:
    """Batch sizes, each with a batch of images."""
    for batch in (1, 32):
        yield batch, np.random.default_rng(1).random((batch, 784), np.float32)


def compared(ways: dict[str, Callable[[], Any]], rounds: int, batch: int) -> list[Row]:
    """One row for each call except the first, the baseline."""
    found = overhead(ways, rounds)
    base, *others = ways
    return [
        (
            f"{name}, batch {batch}",
            float(np.median(found[base])),
            *interval([way - plain for way, plain in zip(found[name], found[base], strict=True)]),
        )
        for name in others
    ]


def table(rows: list[Row], wanted: float) -> list[str]:
    """The rows as Markdown."""
    return [
        f"| `{name.split(', ')[0]}`, {name.split(', ')[1]} | {plain:.1f} | {more:.1f} | {low:.1f} to {high:.1f} | "
        f"{'yes' if high <= wanted else 'no' if low > wanted else 'undecided'} |"
        for name, plain, more, low, high in rows
    ]


def main() -> int:
    """Measure, print and write the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--wanted", type=float, default=WANTED_US, help="the limit in microseconds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file for the table")
    arguments = parser.parse_args()
    called, checked = measure(arguments.rounds), measure_checks(arguments.rounds)
    machine = hardware.describe()
    lines = [
        "# The cost of `InferenceSession.predict`",
        "",
        f"`python -m benchmarks.predict --rounds {arguments.rounds}` on {machine.cpu} ({hardware.kind(machine)}, "
        f"{machine.cores} cores). The table shows the overhead over a bare `session.run` on the MLP: the median over "
        f"the rounds and its 95 % interval. The limit is {arguments.wanted:g} µs.",
        "",
        "| call | bare run, µs | overhead, µs | 95 % interval | met |",
        "|---|---|---|---|---|",
        *table(called, arguments.wanted),
        "",
        'The cost of validation: the overhead over `validate="off"`, for a model with a documented range of 0 to 1.',
        "",
        "| validate | off, µs | overhead, µs | 95 % interval | met |",
        "|---|---|---|---|---|",
        *table(checked, arguments.wanted),
    ]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(any(low > arguments.wanted for _, _, _, low, _ in (*called, *checked)))


if __name__ == "__main__":
    sys.exit(main())
