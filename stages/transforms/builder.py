"""Builds variants for the optimize and quantize stages in a separate process, and rejects duplicates."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from onward.registry.evidence.records import PLAIN, FileDigest, GraphInfo, Status, Variant
from onward.registry.files import sha256_file
from onward.registry.text import plain_words
from onward.stages.config import paths, techniques
from onward.stages.config.techniques import TechniqueSpec
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import WorkerFailure

Feed = Mapping[str, npt.NDArray[Any]]

# ONNX Runtime rewrites both files to one graph, so they take the same time: only one is worth measuring.
RUNS_AS = "ONNX Runtime rewrites it to the same graph as"


class NotApplicable(Exception):
    """A technique cannot improve a graph; the message says why."""


@dataclass(frozen=True)
class Job:
    """An order for one variant.

    Attributes:
        name: Name of the variant.
        base: Name of the variant that it is made from.
        words: The technique and precision, for reports.
        precision: Precision of its products, such as "int8".
        stage: "optimize" or "quantize".
        candidate: The technique and its options, as params.yaml gives them.
        source: The ONNX file of the base.
        target: The ONNX file to write.
        keep: Names of the values that stay in float.
    """

    name: str
    base: str
    words: str
    precision: str
    stage: str
    candidate: TechniqueSpec
    source: Path
    target: Path
    keep: tuple[str, ...] = ()

    def refused(self, reason: str) -> Variant:
        """Report the variant as not attempted."""
        return self._variant("not attempted", reason)

    def failed(self, reason: str) -> Variant:
        """Report the variant as failed."""
        return self._variant("failed", reason)

    def _variant(self, status: Status, reason: str = "") -> Variant:
        return Variant(
            name=self.name,
            base=self.base,
            technique=self.words,
            precision=self.precision,
            float_layers=list(self.keep),
            status=status,
            reason=plain_words(reason),
        )

    def made(self) -> Variant:
        """Report the variant as passed, with its files, size in bytes and node counts.

        Raises:
            UsageError: The written file is not a valid model.
        """
        before, after = _described(self.source), onnx_file.describe(self.target)
        return self._variant("passed").model_copy(
            update={
                "files": onnx_file.digests(self.target),
                "nodes_before": before.nodes,
                "nodes": after.nodes,
                "size_before": before.size_bytes,
                "size_bytes": after.size_bytes,
                "reduction": 1 - after.size_bytes / before.size_bytes,
                "compression": before.size_bytes / after.size_bytes,
            }
        )


@dataclass(frozen=True)
class Made:
    """The result of a job in the separate process.

    Attributes:
        refused: Why the technique is not applicable; empty if it is.
        variant: The variant, unless refused.
        fingerprint: Digest of the graph that ONNX Runtime rewrites it to; empty if it was not computed.
    """

    refused: str = ""
    variant: Variant | None = None
    fingerprint: str = ""


class VariantBuilder:
    """Builds the variants of one stage in a separate process, and rejects those that equal an earlier one."""

    def __init__(self, plain: Path, timeout: float, feeds: list[Feed] | None = None) -> None:
        """Prepare the process; it starts when the context is entered.

        Args:
            plain: The export. Variants that equal it are rejected, too.
            timeout: Limit for each variant, in seconds.
            feeds: Calibration inputs, for techniques that use them.
        """
        self._known: dict[str, str] = {}
        self._process: isolated_call.Isolated[Job | Path, Made] = isolated_call.Isolated(
            functools.partial(_attempt, feeds or []), timeout, "the transformation"
        )
        self._plain = plain

    def __enter__(self) -> VariantBuilder:
        self._process.begin(self._plain)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def make(self, job: Job) -> Variant:
        """Build one variant.

        Returns:
            The variant. Its status is "failed" if the transformation raised or wrote an invalid file, and "not
            attempted" if the technique is not applicable or an earlier variant runs as the same graph.
        """
        return next(self.make_all([job]))

    def remake(self, job: Job) -> Variant:
        """Build one variant, even if an earlier one runs as the same graph."""
        self._process.begin(job)
        return self._finished(job, known=False)

    def make_all(self, jobs: Sequence[Job]) -> Iterator[Variant]:
        """Start many jobs at once and return their variants in order.

        The process works on the next jobs while the caller handles a result.
        """
        for job in jobs:
            self._process.begin(job)
        return (self._finished(job) for job in jobs)

    def _finished(self, job: Job, known: bool = True) -> Variant:
        """The result of a job that was started; `known` rejects it if an earlier variant runs as the same graph."""
        if not self._known:  # the export was the first job
            found = self._process.finish()
            self._known[sha256_file(self._plain)] = PLAIN
            if isinstance(found, Made) and found.fingerprint:
                self._known[found.fingerprint] = PLAIN
        outcome = self._process.finish()
        try:
            if isinstance(outcome, isolated_call.Failed):
                raise outcome.error
            if outcome.variant is None:
                return job.refused(outcome.refused)
            variant = outcome.variant
        except (WorkerFailure, UsageError) as failure:
            _remove(job.target)
            return job.failed(str(failure))
        if not known:
            return variant
        for key, words in ((variant.files[0].sha256, "the same bytes as"), (outcome.fingerprint, RUNS_AS)):
            if key in self._known:
                _remove(job.target)
                return job.refused(f"{words} {self._known[key]}")
        self._known |= {key: job.name for key in (variant.files[0].sha256, outcome.fingerprint) if key}
        return variant


def placed(files: list[FileDigest], model: str, stage: str) -> list[FileDigest]:
    """Give the files their final paths.

    Args:
        files: Files with paths relative to the stage's folder.
        model: Name of the model.
        stage: Name of the stage.

    Returns:
        The files with paths relative to the repository's root.
    """
    return [file.model_copy(update={"path": paths.relative(model, stage, file.path)}) for file in files]


def _attempt(feeds: list[Feed], job: Job | Path) -> Made:
    """Run a job in the separate process; a path alone is fingerprinted."""
    from onward.stages.transforms.graph_hash import fingerprint

    if isinstance(job, Path):
        return Made(fingerprint=fingerprint(job))
    technique = techniques.module(job.stage, job.candidate)
    options = techniques.complete(job.stage, job.candidate)
    try:
        if job.stage == "optimize":
            technique.optimize(job.source, job.target, options)
        else:
            technique.quantize(job.source, job.target, feeds, list(job.keep), options)
    except NotApplicable as reason:
        return Made(refused=str(reason))
    loads = not getattr(technique, "NOT_ON_CPU", "")
    return Made(variant=job.made(), fingerprint=fingerprint(job.target) if loads else "")


@functools.lru_cache(maxsize=8)
def _described(path: Path) -> GraphInfo:
    """Description of a base, which many variants share."""
    return onnx_file.describe(path)


def _remove(target: Path) -> None:
    """Delete a variant's file and its external data."""
    for path in target.parent.glob(f"{target.name}*"):
        path.unlink()
