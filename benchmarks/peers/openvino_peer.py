"""Converts an ONNX file for OpenVINO, and quantises it with NNCF if there are samples.

    python openvino_peer.py [--transformer] MODEL.onnx FOLDER [SAMPLES.npz]

It runs in the peer's environment, so it imports nothing of Onward. The settings are those of NNCF's manual.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    """Write FOLDER/model.xml."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transformer", action="store_true")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("samples", type=Path, nargs="?")
    given = parser.parse_args()
    import openvino

    model = openvino.Core().read_model(given.model)
    if given.samples is not None:
        import nncf

        names = {name for one in model.inputs for name in one.names}
        with np.load(given.samples, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in names}
        rows = [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
        kind = nncf.ModelType.TRANSFORMER if given.transformer else None
        model = nncf.quantize(model, nncf.Dataset(rows), model_type=kind)
    openvino.save_model(model, given.folder / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
