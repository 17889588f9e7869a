"""Quantises a graph with NNCF in NNCF's own environment.

It runs as a process, with that environment's Python: `python nncf_process.py ORDER.json`. So it imports nothing of
Onward. The order names the source, the target, an archive of calibration samples (`BATCH/INPUT`), the nodes that stay
in float, and the largest error. An error of 0 calls `nncf.quantize`. Otherwise
`nncf.quantize_with_accuracy_control` leaves layers in float until the error on the calibration samples is at most so
large. The error is the root of noise power over signal power, of the worst output.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# protobuf refuses messages of 2 GiB.
EXTERNAL_DATA_BYTES = 2_000_000_000
# The option of prctl(2) that names the signal for a process whose parent has ended.
PR_SET_PDEATHSIG = 1


def main(order_file: str) -> None:
    """Carry out an order.

    Args:
        order_file: The JSON file with the order.
    """
    if sys.platform == "linux":  # the stage ends its own process if NNCF takes too long
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    import nncf
    import numpy as np
    import onnx
    import onnxruntime

    order = json.loads(Path(order_file).read_text())
    with np.load(order["samples"]) as archive:
        feeds: dict[str, dict[str, Any]] = {}
        for key in archive.files:
            batch, _, name = key.partition("/")
            feeds.setdefault(batch, {})[name] = archive[key]
    batches = list(feeds.values())
    model = onnx.load(order["source"])
    settings = {
        "target_device": nncf.TargetDevice.CPU,
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(batches),
        "ignored_scope": nncf.IgnoredScope(names=order["float_nodes"], validate=False),
    }
    if not order["max_error"]:
        result = nncf.quantize(model, nncf.Dataset(batches), **settings)
    else:

        def answers(one: Any, number: int) -> list[Any]:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(one.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return [np.asarray(value, np.float64) for value in session.run(None, batches[number])]

        wanted = [answers(model, number) for number in range(len(batches))]

        def accuracy(one: Any, numbers: Iterable[int]) -> tuple[float, list[float]]:
            """1 - the error of the worst output, as a mean over batches, and of each batch."""
            found = []
            for number in numbers:
                errors = [
                    float(np.sqrt(np.square(got - expected).sum() / max(np.square(expected).sum(), 1e-30)))
                    for got, expected in zip(answers(one, number), wanted[number], strict=True)
                ]
                found.append(1 - max(errors))
            return float(np.mean(found)), found

        result = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(batches),
            nncf.Dataset(list(range(len(batches)))),
            accuracy,
            max_drop=order["max_error"],
            **settings,
        )
    is_large = model.ByteSize() > EXTERNAL_DATA_BYTES
    target = Path(order["target"])
    onnx.save_model(result, target, save_as_external_data=is_large, location=f"{target.name}.data")


if __name__ == "__main__":
    main(sys.argv[1])
