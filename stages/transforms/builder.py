"""What the optimize and quantize stages have in common: graphs made in isolation, weighed, and none made twice."""

from __future__ import annotations

import functools
import re
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
from onward.stages.config import paths, techniques
from onward.stages.config.schema import TechniqueSpec
from onward.stages.workers import isolated_call
from onward.stages.workers.worker import WorkerFailure

Feed = Mapping[str, npt.NDArray[Any]]

# What a session makes of two graphs is one and the same: timing both would time it twice.
RUNS_AS = "ONNX Runtime makes the same graph of it as of"


class NotApplicable(Exception):
    """A technique has nothing to offer for a graph; the message says why."""


@dataclass(frozen=True)
class Job:
    """A variant to be made of `source`: by which technique, with which options, leaving which values in float."""

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
        """The variant, not attempted."""
        return self._variant("not attempted", reason)

    def failed(self, reason: str) -> Variant:
        """The variant, failed."""
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
        """The variant, with its size and node counts.

        Raises:
            UsageError: the file is unsound.
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
    """What came of a job in its own process: why the technique refused, or the variant and what ONNX Runtime makes of
    it."""

    refused: str = ""
    variant: Variant | None = None
    fingerprint: str = ""


class VariantBuilder:
    """Makes the variants of one stage in a process of their own, and none twice.

    `plain` is the graph that all are compared with first; `feeds` are for techniques that calibrate.
    """

    def __init__(self, plain: Path, timeout: float, feeds: list[Feed] | None = None) -> None:
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
        """The variant: `failed` with the reason where the transformation or its result is unsound, `not attempted`
        where the technique has nothing to offer, or where its graph runs as one does that there is already."""
        return next(self.make_all([job]))

    def remake(self, job: Job) -> Variant:
        """The variant, also where there is one already that runs alike."""
        self._process.begin(job)
        return self._finished(job, known=False)

    def make_all(self, jobs: Sequence[Job]) -> Iterator[Variant]:
        """The variants of many jobs, in order. They are begun at once: while the caller does something else or looks at
        one, the next ones are being made."""
        for job in jobs:
            self._process.begin(job)
        return (self._finished(job) for job in jobs)

    def _finished(self, job: Job, known: bool = True) -> Variant:
        """What came of a job that was begun; `known`: whether it is refused where there is one that runs alike."""
        if not self._known:  # the export was begun first
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
        for key, alike in ((variant.files[0].sha256, "the same bytes as"), (outcome.fingerprint, RUNS_AS)):
            if key in self._known:
                _remove(job.target)
                return job.refused(f"{alike} {self._known[key]}")
        self._known |= {key: job.name for key in (variant.files[0].sha256, outcome.fingerprint) if key}
        return variant


def placed(files: list[FileDigest], model: str, stage: str) -> list[FileDigest]:
    """The files named from the repository's root, as they lie once the stage is done."""
    return [file.model_copy(update={"path": paths.relative(model, stage, file.path)}) for file in files]


def plain_words(reason: str) -> str:
    """A library's failure in one line."""
    return re.sub(r"\s+", " ", reason).strip()[:400]


def _attempt(feeds: list[Feed], job: Job | Path) -> Made:
    """What is done in the process of its own."""
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
    return onnx_file.describe(path)


def _remove(target: Path) -> None:
    for path in target.parent.glob(f"{target.name}*"):
        path.unlink()
