"""Prepares the float graphs that quantisers read: normalised, pre-processed, equalised, smoothed; each made once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import onnx

from onward.registry.artifact import onnx_file
from onward.registry.text import plain_words
from onward.stages.config.techniques import Options
from onward.stages.transforms import normalize
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.quantizers import prepare
from onward.stages.transforms.recovery.equalize import equalize
from onward.stages.transforms.recovery.smooth import smooth
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import WorkerFailure

# Why a step has nothing to do.
NOTHING = {
    "equalize": "there is nothing to equalise: no layer reads only the channels of one other layer",
    "smooth": "there is nothing to smooth: no product with a constant matrix follows a normalisation",
}


class Unavailable(Exception):
    """A float graph cannot be made; the message says why."""


class Sources:
    """The float graphs of one run of the stage.

    Args:
        folder: Where they are written.
        feeds: Calibration inputs by name.
        timeout: Limit for each step, in seconds.
    """

    def __init__(self, folder: Path, feeds: Sequence[Feed], timeout: float) -> None:
        self._folder, self._feeds, self._timeout = folder, feeds, timeout
        self._made: dict[tuple[str, ...], Path | str] = {}
        self.notes: dict[str, str] = {}

    def normalized(self, base: str, path: Path) -> Path:
        """The base in the form that quantisers handle.

        `notes` has the changes in words, by base, or why there are none.

        Args:
            base: Name of the base.
            path: Its ONNX file.

        Returns:
            The rewritten file, or `path` itself if there is nothing to change or the rewritten graph is not the same.
        """
        key = (base,)
        if key not in self._made:
            target = self._folder / f"{base}.normal.onnx"
            self._made[key] = path
            try:
                changes = isolated_call.call(self._timeout, normalize.normalize, path, target, self._feeds)
                if changes:
                    self._made[key] = target
                    self.notes[base] = "; ".join(changes)
            except WorkerFailure as failure:
                self.notes[base] = f"left as it is, because it could not be normalised: {plain_words(failure.reason)}"
        found = self._made[key]
        assert isinstance(found, Path)
        return found

    def of(self, base: str, path: Path, module: ModuleType, options: Options) -> Path:
        """The file that a candidate quantises.

        Args:
            base: Name of the base.
            path: Its ONNX file.
            module: The quantiser's module.
            options: Its options.

        Returns:
            The file after all steps that the quantiser asks for.

        Raises:
            Unavailable: A step failed, or has nothing to do.
        """
        source = self.normalized(base, path)
        steps = ["prepare"] if getattr(module, "PREPARED", False) else []
        steps += getattr(module, "float_steps", lambda _: [])(options)
        for count in range(1, len(steps) + 1):
            key = (base, *steps[:count])
            if key not in self._made:
                self._made[key] = self._step(steps[count - 1], source, self._folder / f"{'.'.join(key)}.onnx")
            found = self._made[key]
            if isinstance(found, str):
                raise Unavailable(found)
            source = found
        return source

    def _step(self, step: str, source: Path, target: Path) -> Path | str:
        """Run one step; gives its file, or why there is none."""
        name, _, value = step.partition(":")
        call: Callable[[], list[str]] = {
            "prepare": functools.partial(_prepared, source, target),
            "equalize": functools.partial(_checked, equalize, source, target, self._feeds),
            "smooth": functools.partial(
                _checked,
                functools.partial(smooth, feeds=self._feeds, alpha=float(value or 0)),
                source,
                target,
                self._feeds,
            ),
        }[name]
        try:
            changes = isolated_call.call(self._timeout, call)
        except WorkerFailure as failure:
            words = plain_words(failure.reason)
            return f"pre-processing failed: {words}" if name == "prepare" else f"{name} failed: {words}"
        return target if changes else NOTHING[name]


def _prepared(source: Path, target: Path) -> list[str]:
    prepare(source, target)
    return ["pre-processed"]


def _checked(step: Callable[[Path, Path], list[str]], source: Path, target: Path, feeds: Sequence[Feed]) -> list[str]:
    """Run a step and compare its float graph with the one before it."""
    changes = step(source, target)
    if changes:
        _infer_types(target)
        normalize.compare(source, target, feeds)
    return changes


def _infer_types(path: Path) -> None:
    """Add the types of new values, by which quantisers recognise float tensors."""
    if sum(file.stat().st_size for file in onnx_file.files(path)) < onnx_file.EXTERNAL_DATA_BYTES:
        onnx_file.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
