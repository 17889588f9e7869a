"""Runs models that return a state and take it back in the next step, over whole sequences.

params.yaml names the state: `states: {state: stateN}`. Samples are sequences then: every other input has an axis of
steps behind the axis of samples, [samples, steps, ...]. The state begins with zeros, or with the samples' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.sample_axes import to_front
from onward.stages.config.layout import Layout, in_place, shape_of, sizes_of, with_constants
from onward.stages.parity.filling import fill_up
from onward.stages.workers import jitter

if TYPE_CHECKING:
    from onward.stages.config.schema import Dim, Input, ModelParams

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Run = Callable[[Tensors], Mapping[str, Array]]


@dataclass(frozen=True)
class Sequences:
    """Samples that are sequences of steps, and what is needed to run a model on them.

    Attributes:
        inputs: The declared inputs.
        dims: The inputs' own dimensions.
        states: The output that becomes an input of the next step, by input.
        samples: Arrays by input name: [samples, steps, ...], an initial state [samples, ...], or one array for all.
        axes: The axis of samples of each output.
    """

    inputs: Mapping[str, Input]
    dims: Mapping[str, Dim]
    states: Mapping[str, str]
    samples: Mapping[str, Array]
    axes: Mapping[str, int | None]

    @classmethod
    def of(cls, settings: ModelParams, samples: Mapping[str, Array]) -> Sequences | None:
        """The sequences in samples; None if the model has no state, or the samples are single steps.

        Args:
            settings: The model's settings.
            samples: Arrays by input name, samples on axis 0.
        """
        if not has_steps(settings, samples):
            return None
        return cls(settings.inputs, settings.free_dims, settings.states, samples, Layout.of(settings).outputs)

    @property
    def steps(self) -> int:
        """The number of steps of each sequence."""
        return int(self.samples[_stepped(self.inputs, self.states)[0]].shape[1])

    def part(self, start: int, size: int, steps: int | None = None) -> Sequences:
        """The sequences from `start` on.

        Args:
            start: The first sequence.
            size: Number of sequences.
            steps: Number of steps to keep of each; by default all.
        """
        stepped = _stepped(self.inputs, self.states)
        found = {}
        for name, values in self.samples.items():
            if name in stepped:
                values = values[start : start + size, :steps]
            elif name in self.inputs and self.inputs[name].samples_on is not None:
                values = values[start : start + size]
            found[name] = values
        return replace(self, samples=found)

    def shaken(self, rng: np.random.Generator) -> Sequences:
        """The same with every float moved by one unit in the last place."""
        moved = {n: jitter.moved(v, rng) if v.dtype.kind == "f" else v for n, v in self.samples.items()}
        return replace(self, samples=moved)

    def feed(self, step: int, state: Tensors | None = None) -> Tensors:
        """The inputs of one step, in the model's own layout.

        Args:
            step: The step's number.
            state: The state after the step before; None for the initial state.
        """
        stepped = _stepped(self.inputs, self.states)
        given = {
            name: in_place(spec, self.samples[name][:, step] if name in stepped else self.samples[name])
            for name, spec in self.inputs.items()
            if not spec.is_fixed and name not in self.states
        }
        given |= self._initial(given) if state is None else state
        return with_constants(self.inputs, given)

    def feeds(self, run: Run) -> Iterator[tuple[Tensors, Mapping[str, Array]]]:
        """Run a model step by step, on its own state; yields the inputs and the outputs of each step."""
        state: Tensors | None = None
        for step in range(self.steps):
            feed = self.feed(step, state)
            outputs = run(feed)
            state = {name: outputs[output] for name, output in self.states.items()}
            yield feed, outputs

    def outputs(self, run: Run) -> Tensors:
        """Run a model over all steps.

        Args:
            run: Computes the outputs of one step.

        Returns:
            Outputs by name, [samples, steps, ...]. A state that grows is filled up to its largest size.
        """
        parts = [outputs for _, outputs in self.feeds(run)]
        return {
            name: np.stack(fill_up([to_front(part[name], self.axes.get(name, 0)) for part in parts]), axis=1)
            for name in parts[0]
        }

    def _initial(self, given: Tensors) -> Tensors:
        """The state before the first step: that of the samples, else zeros. Sizes of its own are at their minimum."""
        sizes = {name: dim.min for name, dim in self.dims.items()} | sizes_of(self.inputs, given)
        found = {}
        for name in self.states:
            spec = self.inputs[name]
            shape = [size or 0 for size in shape_of(spec.shape, sizes)]
            own = self.samples.get(name)
            found[name] = np.zeros(shape, spec.dtype) if own is None else in_place(spec, own)
        return found


def has_steps(settings: ModelParams, samples: Mapping[str, Array]) -> bool:
    """Whether samples are sequences of steps: the arrays have one axis more than declared.

    Args:
        settings: The model's settings, with `inputs` and `states`.
        samples: Arrays by input name, samples on axis 0.
    """
    if not settings.states:
        return False
    stepped = _stepped(settings.inputs, settings.states)
    return bool(stepped) and all(samples[name].ndim == len(settings.inputs[name].shape) + 1 for name in stepped)


def steps_of(settings: ModelParams, samples: Mapping[str, Array]) -> int:
    """The number of steps of each sample; 0 if samples are no sequences. The arguments are those of `has_steps`."""
    if not has_steps(settings, samples):
        return 0
    return int(min(samples[name].shape[1] for name in _stepped(settings.inputs, settings.states)))


def _stepped(inputs: Mapping[str, Input], states: Mapping[str, str]) -> list[str]:
    """The inputs that have other values in each step."""
    return [name for name, spec in inputs.items() if spec.samples_on is not None and name not in states]


def drift(wanted: Mapping[str, Array], got: Mapping[str, Array]) -> dict[str, list[float]]:
    """How the error of each output develops over the steps.

    Args:
        wanted: The reference's outputs, [samples, steps, ...] each.
        got: The outputs to judge.

    Returns:
        By output, the root mean square of the error at each step, relative to that of the reference over all steps.
        Outputs of integers, and those of another shape, are left out.
    """
    found = {}
    for name, reference in wanted.items():
        value = got.get(name)
        if value is None or value.shape != reference.shape or reference.dtype.kind != "f" or reference.ndim < 2:
            continue
        axes = (0, *range(2, reference.ndim))
        with np.errstate(all="ignore"):
            error = np.nanmean(np.square(value.astype(np.float64) - reference.astype(np.float64)), axis=axes)
            signal = float(np.nanmean(np.square(reference.astype(np.float64))))
        found[name] = [float(f"{step:.4g}") for step in np.sqrt(np.nan_to_num(error) / max(signal, 1e-300))]
    return found
