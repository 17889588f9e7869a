"""Runs a model that takes one sample at a time on a batch: sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onward.stages.config.layout import Layout
from onward.stages.config.schema import ModelParams

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class OneByOne:
    """How a batch is split into samples, and how their answers are joined.

    Attributes:
        batch: Name of the batch dimension.
        inputs: The declared shape of each input.
        outputs: The declared shape of each output.
    """

    batch: str
    inputs: Mapping[str, Sequence[int | str]]
    outputs: Mapping[str, Sequence[int | str]]

    def run(self, run: Callable[[Arrays], Arrays], inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run each sample of a batch on its own.

        Args:
            run: Computes the outputs of one sample.
            inputs: Arrays by input name.

        Returns:
            Outputs by name, as for the whole batch. An output without the batch dimension is that of the first sample.
        """
        axes = {name: shape.index(self.batch) for name, shape in self.inputs.items() if self.batch in shape}
        name, axis = next(iter(axes.items()))
        answers = []
        for number in range(inputs[name].shape[axis]):
            one = {
                key: np.take(value, [number], axis=axes[key]) if key in axes else value for key, value in inputs.items()
            }
            answers.append(run(one))
        if not answers:
            return dict(run(inputs))
        return {name: self._joined(name, [answer[name] for answer in answers]) for name in answers[0]}

    def _joined(self, name: str, values: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        shape = list(self.outputs.get(name, ()))
        return np.concatenate(values, axis=shape.index(self.batch)) if self.batch in shape else values[0]


def frozen(model: onnx.ModelProto, settings: ModelParams) -> Mapping[str, int]:
    """The sizes at which a file fixes dimensions that params.yaml declares to vary, by the dimension's name."""
    given = {value.name: value for value in model.graph.input}
    found = {}
    for name, spec in settings.inputs.items():
        sizes = given[name].type.tensor_type.shape.dim if name in given else []
        if len(sizes) == len(spec.shape):
            for wanted, size in zip(spec.shape, sizes, strict=True):
                dim = settings.dims.get(str(wanted))
                if dim is not None and dim.varies and size.dim_value > 0:
                    found[str(wanted)] = size.dim_value
    return found


def frozen_batch(model: onnx.ModelProto, settings: ModelParams) -> str:
    """Name of the batch dimension if a file takes one sample at a time, and params.yaml declares more; empty if not."""
    batch = Layout.of(settings).size
    return str(batch) if frozen(model, settings) == {batch: 1} else ""
