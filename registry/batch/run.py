"""Runs a model over parquet files with Ray Data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onward.registry import ray_cluster
from onward.registry.batch.parts import Part, adopt, divide, files_in, place, record_of
from onward.registry.batch.worker import Work, Worker
from onward.registry.errors import MachineFault, UsageError
from onward.registry.inference.model import swept_batch
from onward.registry.inference.session import InferenceSession
from onward.registry.store import connection
from onward.registry.text import suggestion

DEFAULT_BATCH = 32


@dataclass
class Summary:
    """What came of a run.

    Attributes:
        model: The model's name.
        version: The version that ran.
        sha256: The digest of its files.
        rows: The rows that this run processed.
        parts: The parts that this run wrote.
        known: The parts that an earlier run had written.
        seconds: How long the run took.
        worker_seconds: The time that all workers spent on their parts together.
        workers: The number of workers.
        failed: The parts that failed, each with the reason.
    """

    model: str
    version: int
    sha256: str
    rows: int = 0
    parts: int = 0
    known: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    workers: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What to run.

    Attributes:
        target: MODEL@ENVIRONMENT or MODEL/VERSION.
        source: The parquet file, or the folder of parquet files; a path or a URI.
        output: The folder for the results; a path or a URI.
        address: The Ray cluster; None to start one on this machine.
        columns: The column of each input, where it is not the input's name.
        shared: The values of inputs that all samples share.
        batch: The number of samples in a batch; None for the best one of the version's benchmark.
        processors: The number of processors of a worker.
        require_signed: Whether to load only what a signer deployed.
    """

    target: str
    source: str
    output: str
    address: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    processors: int = 1
    require_signed: bool = False


def run(request: Request, watch: Callable[[Summary, int], None]) -> Summary:
    """Run a model over parquet files.

    The results are files in a folder, one for each part of the input. A part is written whole or not at all. Parts that
    are there already are not run again.

    Args:
        request: What to run.
        watch: Called after each part with what was done so far, and the number of all parts.

    Returns:
        What came of it.

    Raises:
        UsageError: There is no such model, file or column, or the model cannot be run over rows.
        Refused: The version fails a check, or the folder has results of another run.
        StoreUnreachable: The MLflow store or the cluster does not answer.
    """
    ray_cluster.require_ray()
    begun = time.monotonic()
    store = connection.tracking_uri()
    if request.address is not None:
        ray_cluster.require_reachable(store)
    session = InferenceSession(request.target, require_signed=request.require_signed)
    found = session.metadata
    if found.version is None:
        raise UsageError(f"{request.target}: is a file; name a registered version: MODEL@ENVIRONMENT or MODEL/VERSION")
    columns = _columns(session, request)
    batch = request.batch or swept_batch(session.loaded) or DEFAULT_BATCH
    source, output = place(request.source), place(request.output)
    stamp = {
        "model": found.model, "version": str(found.version), "sha256": found.sha256, "manifest": found.manifest,
        "environment": found.environment,
    }  # fmt: skip
    work = Work(
        request.target, store, source, output, columns, dict(request.shared), batch, request.processors,
        request.require_signed, stamp,
    )  # fmt: skip
    files = files_in(source)
    parts = [part for path in files for part in divide(source, path, list(columns.values()), batch)]
    done = adopt(output, record_of(source, files, stamp, columns, request.shared))
    missing = [part for part in parts if part.output not in done]
    summary = Summary(found.model, found.version, found.sha256, known=len(parts) - len(missing))
    watch(summary, len(parts))
    if missing:
        with ray_cluster.connected(request.address, {}) as ray:
            _run(ray, work, missing, summary, lambda: watch(summary, len(parts)))
    summary.seconds = time.monotonic() - begun
    return summary


def _run(ray: Any, work: Work, parts: list[Part], summary: Summary, watch: Callable[[], None]) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < work.processors:
        raise UsageError(f"no machine of the cluster has {work.processors} CPUs (--cpus); all together have {cpus}")
    summary.workers = min(len(parts), cpus // work.processors)
    rows = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
    results = rows.map_batches(
        Worker,
        batch_size=1,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(size=summary.workers),  # Ray starts lost workers again
        num_cpus=work.processors,
    )
    try:
        for row in results.iter_rows():
            summary.worker_seconds += row["seconds"]
            if row["reason"]:
                summary.failed[row["output"]] = row["reason"]
            else:
                summary.parts += 1
                summary.rows += row["rows"]
            watch()
    except ray.exceptions.RayError as error:
        cause = ray_cluster.cause(error)
        raise MachineFault(f"the workers ended: {cause}; finished parts stay, so run it again") from error


def _columns(session: InferenceSession, request: Request) -> dict[str, str]:
    """The column of each input that has an axis of samples."""
    names = [spec.name for spec in session.metadata.inputs]
    for name in (*request.columns, *request.shared):
        if name not in names:
            raise UsageError(f"{request.target}: there is no input {name!r}" + suggestion(name, names))
    if session.loaded.states:
        raise UsageError(
            f"{request.target}: has a state ({', '.join(session.loaded.states)}), so its rows depend on each other"
        )
    found = {}
    for name in names:
        if name in request.shared:
            continue
        if session.sample_axes[name] is None:
            raise UsageError(
                f"{request.target}: all samples share the input {name!r}: give its value with --set {name}=VALUE"
            )
        found[name] = request.columns.get(name, name)
    if not found:
        raise UsageError(f"{request.target}: no input has an axis of samples")
    return found
