"""What the optimize and quantize stages have in common: make a graph in isolation, weigh it, check it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry import onnx_file
from registry.errors import UsageError
from registry.vocabulary import FileDigest, Variant
from stages import paths
from stages.runtime import isolate
from stages.runtime.pool import WorkerFailure


class NotApplicable(Exception):
    """A technique has nothing to offer for a graph; the message says why."""


def make(
    name: str, base: str, technique: str, precision: str, source: Path, target: Path, timeout: float, *transform: Any
) -> Variant:
    """Call `transform` (a function of source and target, and its further arguments) in a process of its own.

    Returns:
        the variant with its size and node counts; `failed` with the reason where the transform or the result is
        unsound, `not attempted` where the technique has nothing to offer.
    """
    function, *rest = transform
    variant = Variant(name=name, base=base, technique=technique, precision=precision, status="passed")
    try:
        refused = isolate.call(timeout, _attempt, function, source, target, rest)
        if refused:
            return variant.model_copy(update={"status": "not attempted", "reason": refused})
        before, after = onnx_file.describe(source), onnx_file.describe(target)
        onnx_file.files(target)
    except (WorkerFailure, UsageError) as failure:
        _remove(target)
        return variant.model_copy(update={"status": "failed", "reason": plain_words(str(failure))})
    return variant.model_copy(
        update={
            "files": onnx_file.digests(target),
            "nodes_before": before.nodes,
            "nodes": after.nodes,
            "size_before": before.size_bytes,
            "size_bytes": after.size_bytes,
            "reduction": 1 - after.size_bytes / before.size_bytes,
            "compression": before.size_bytes / after.size_bytes,
        }
    )


def drop_duplicates(variants: list[Variant], known: dict[str, str], folder: Path) -> list[Variant]:
    """A variant with the very bytes of an earlier one is not measured twice; `known` maps sha256 to the earlier one."""
    kept = []
    for variant in variants:
        if variant.status == "passed":
            digest = variant.files[0].sha256
            if digest in known:
                for file in variant.files:
                    (folder / file.path).unlink(missing_ok=True)
                variant = variant.model_copy(
                    update={"status": "not attempted", "reason": f"the same bytes as {known[digest]}", "files": []}
                )
            else:
                known[digest] = variant.name
        kept.append(variant)
    return kept


def placed(files: list[FileDigest], model: str, stage: str) -> list[FileDigest]:
    """The files named from the repository's root, as they lie once the stage is done."""
    return [file.model_copy(update={"path": paths.relative(model, stage, file.path)}) for file in files]


def plain_words(reason: str) -> str:
    """A library's failure in one line."""
    return re.sub(r"\s+", " ", reason).strip()[:400]


def _attempt(function: Callable[..., None], source: Path, target: Path, rest: list[Any]) -> str:
    try:
        function(source, target, *rest)
    except NotApplicable as reason:
        return str(reason)
    return ""


def _remove(target: Path) -> None:
    for path in target.parent.glob(f"{target.name}*"):
        path.unlink()
