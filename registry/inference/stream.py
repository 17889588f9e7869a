"""A sequence of predictions of a model that returns a state and takes it back in the next step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onward.registry.errors import UsageError
from onward.registry.evidence import size_expressions
from onward.registry.inference.conversion import Array
from onward.registry.inference.inputs import Inputs


class Stream:
    """Runs a model step by step and keeps its state between the steps.

    A stream belongs to the version that was loaded when it began. Use one stream per sequence; a stream can be used by
    several threads, whose steps then run one after another.

    Args:
        inputs: the model's inputs.
        outputs: the names of its outputs, in order.
        states: the output that becomes an input of the next step, by input.
        run: computes the outputs for the arrays of all inputs.
    """

    def __init__(
        self,
        inputs: Inputs,
        outputs: list[str],
        states: Mapping[str, str],
        run: Callable[[dict[str, Array]], list[Array]],
    ) -> None:
        self._inputs, self._outputs, self._states, self._run = inputs, outputs, dict(states), run
        self._names = [name for name in inputs.required if name not in states]
        self._lock = threading.Lock()
        self._state: dict[str, Array] = {}

    @property
    def state(self) -> dict[str, Array]:
        """The state after the last step, by input; empty before the first step."""
        return dict(self._state)

    def reset(self) -> None:
        """Begin again, with a state of zeros."""
        with self._lock:
            self._state = {}

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Run one step.

        Args:
            *args: the inputs in the order of the graph, without states, or one dict of inputs by name.
            **kwargs: the inputs by name, without states.

        Returns:
            the output if the model has only one besides its states; else a dict of outputs by name.

        Raises:
            UsageError: as for `InferenceSession.predict`, or a state is given. The state stays as it was.
            OnwardError: ONNX Runtime failed. The state stays as it was.
        """
        given = self._by_name(args, kwargs)
        with self._lock:
            state = self._state or self._initial(given)
            results = self._run(self._inputs.feed((), {**given, **state}))
            named = dict(zip(self._outputs, results, strict=True))
            self._state = {name: named[output] for name, output in self._states.items()}
        kept = {name: value for name, value in named.items() if name not in self._states.values()}
        return next(iter(kept.values())) if len(kept) == 1 else kept

    def _by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) == 1 and isinstance(args[0], (dict, Mapping)) and not kwargs:
            return self._by_name((), args[0])
        if len(args) > len(self._names):
            raise UsageError(f"{len(args)} inputs given; without its states, the model takes {', '.join(self._names)}")
        twice = [name for name in self._names[: len(args)] if name in kwargs]
        if twice:
            raise UsageError(f"input {twice[0]!r} is given by position and by name")
        kept = [name for name in kwargs if name in self._states]
        if kept:
            raise UsageError(f"the stream keeps the state {kept[0]!r} itself; call reset() to begin again with zeros")
        return {**dict(zip(self._names, args, strict=False)), **kwargs}

    def _initial(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """A state of zeros, of the sizes of the given inputs. Sizes that only the state has are at their minimum."""
        sizes = dict(self._inputs.smallest)
        for spec in self._inputs.all:
            if spec.name in given and spec.name not in self._states:
                shape = np.shape(given[spec.name])
                sizes |= {dim: size for dim, size in zip(spec.shape, shape, strict=False) if isinstance(dim, str)}
        found = {}
        for spec in self._inputs.all:
            if spec.name in self._states:
                wanted = [
                    dim if isinstance(dim, int) else size_expressions.known(dim, sizes) if dim else None
                    for dim in spec.shape
                ]
                if None in wanted:
                    raise UsageError(
                        f"the initial size of the state {spec.name} is not known: the model documents {spec}; "
                        "call predict with a state instead"
                    )
                found[spec.name] = np.zeros([size or 0 for size in wanted], spec.dtype)
        return found
