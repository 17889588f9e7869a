"""How much `onward fleet` costs beside the stages, what a lost machine costs, and `onward batch` beside a loop.

    python -m benchmarks.fleet [--only PART ...] [--models N] [--rows N] [--out FILE]

Starts a Ray cluster on this machine: a head, and two nodes with one CPU and a DVC cache each. Runs the pipelines of
small models on it, kills nodes on the way, and runs a transformer over rows with `onward batch`. Run it on an idle
machine: the overhead compares the CPU time of the whole machine with that of the stages.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.findings import Finding, table
from onward.registry.host import hardware
from onward.registry.inference.session import InferenceSession
from onward.registry.store.store import Store
from tests.conftest import run
from tests.fleet_cluster import Cluster, kill, project
from tests.servers import plain_mlflow_server

PARTS = ("pipelines", "kills", "batch", "many")
NODES = ["left", "right"]
LOOP_SECONDS = 60.0


def busy_seconds() -> float:
    """The CPU time that all processes of this machine have used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def pipelines(count: int, folder: Path) -> Iterator[Finding]:
    """Run the pipelines of `count` models, and compare the CPU time of the machine with that of the stages."""
    root = shared_project(folder, count)
    with ExitStack() as held:
        store = held.enter_context(plain_mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", folder))
        cluster = Cluster(root, folder, NODES, held)
        time.sleep(5)  # the nodes start their first workers
        before, begun = busy_seconds(), time.monotonic()
        answer = folder / "answer.json"
        cluster.run(store, answer).wait()
        seconds, used = time.monotonic() - begun, busy_seconds() - before
    found = json.loads(answer.read_text())["models"]
    stages = [stage for one in found for stage in one["stages"].values()]
    own = sum(stage["cpu_seconds"] for stage in stages)
    passed = sum(one["state"] == "passed" for one in found)
    yield Finding(
        f"{count} small models on {len(NODES)} nodes: CPU time of the machine over that of the stages",
        "at most 1.15", f"{used / own:.3f} ({used:.0f} s over {own:.0f} s; {seconds:.0f} s; {passed} passed)",
        used / own <= 1.15 and passed == count,
    )  # fmt: skip
    overlapping = list(overlaps(found))
    yield Finding(
        "measurements during which another stage ran on the same node", "none",
        f"{len(overlapping)} of {count}" + "".join(f"; {one}" for one in overlapping[:3]), not overlapping,
    )  # fmt: skip


def overlaps(models: list[dict[str, Any]]) -> Iterator[str]:
    """Name the measurements that were not alone on their node."""
    spans = [
        (stage["machine"], stage["ended"] - stage["seconds"], stage["ended"], f"{name} of {one['model']}", name)
        for one in models
        for name, stage in one["stages"].items()
    ]
    for first, second in itertools.combinations(spans, 2):
        together = first[0] == second[0] and max(first[1], second[1]) < min(first[2], second[2])
        if together and "benchmark" in (first[4], second[4]):
            yield f"{first[3]} and {second[3]}"


def kills(count: int, folder: Path) -> Iterator[Finding]:
    """Kill a node again and again while the pipelines of `count` models run."""
    root = shared_project(folder, count)
    order = random.Random(0)
    killed = 0
    with ExitStack() as held:
        store = held.enter_context(plain_mlflow_server(f"sqlite:///{folder / 'mlflow.db'}", folder))
        cluster = Cluster(root, folder, NODES, held)
        answer = folder / "answer.json"
        running = cluster.run(store, answer)
        while running.poll() is None:
            pause = time.monotonic() + order.uniform(20, 90)
            while running.poll() is None and time.monotonic() < pause:
                time.sleep(0.5)
            if running.poll() is None:
                name = order.choice(NODES)
                kill(cluster.nodes[name])
                killed += 1
                time.sleep(5)
                cluster.nodes[name] = cluster.start(name)
    found = json.loads(answer.read_text())["models"]
    passed = sum(one["state"] == "passed" for one in found)
    yield Finding(
        f"{count} models while a node is killed {killed} times", "all pass", f"{passed} passed", passed == count
    )
    repeats = [sum(Counter(one["computed"]).values()) - len(set(one["computed"])) for one in found]
    yield Finding(
        "stages that a model repeated", "at most one for each kill of its node",
        f"{sum(repeats)} in all, at most {max(repeats)} of one model; {killed} kills", sum(repeats) <= killed,
    )  # fmt: skip


def shared_project(folder: Path, count: int) -> Path:
    """A project of `count` small models with a remote."""
    root = project(folder / "project", {}, **{f"model{number}": {"seed": number} for number in range(count)})
    done = run(f"dvc remote add --default shared '{folder / 'remote'}' && git commit -qam remote", root)
    if done.returncode:
        raise RuntimeError(done.stdout)
    return root


def batch(rows: int, folder: Path) -> Iterator[Finding]:
    """Run a transformer over rows with `onward batch`, and with a loop that a user would write."""
    from benchmarks.serving_servers import model_folder
    from tests.store_factory import register_folder

    folder.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    made, _ = model_folder("transformer", folder, 1)
    register_folder(Store(), "transformer", made)
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    each = min(rows, 100_000)
    for number in range(-(-rows // each)):
        words = rng.integers(2, 1000, (each, 64))
        values = {"input_ids": words, "attention_mask": np.ones_like(words)}
        columns = {name: pa.FixedSizeListArray.from_arrays(one.ravel(), 64) for name, one in values.items()}
        pq.write_table(
            pa.table({"id": np.arange(each) + number * each, **columns}), folder / "in" / f"{number}.parquet"
        )
    first = folder / "in" / "0.parquet"
    rates = [loops(first, LOOP_SECONDS)]
    peak: list[float] = []
    command = [
        sys.executable, "-m", "onward.cli", "batch", "transformer/1", "--input", str(folder / "in"),
        "--output", str(folder / "out"), "--batch-size", "32", "--json",
    ]  # fmt: skip
    with open(folder / "answer.json", "wb") as output:
        process = subprocess.Popen(command, stdout=output)
    while process.poll() is None:
        time.sleep(2)
        peak.append(workers_mb())
    rates.append(loops(first, LOOP_SECONDS))  # before and after: the machine's speed changes within half an hour
    answer = json.loads((folder / "answer.json").read_text())
    rate, loop_rate = answer["rows"] / answer["worker_seconds"], float(np.mean(rates))
    yield Finding(
        f"onward batch, transformer, {answer['rows']} rows: rows per second and core over a loop's", "at least 0.9",
        f"{rate / loop_rate:.2f} ({rate:.0f} over {rates[0]:.0f} before and {rates[1]:.0f} after; "
        f"{answer['seconds']:.0f} s)", rate >= 0.9 * loop_rate,
    )  # fmt: skip
    middle = len(peak) // 2
    early, late = max(peak[len(peak) // 5 : middle] or [0]), max(peak[middle:] or [0])
    yield Finding(
        "memory of all workers together, first and second half", "grows by less than 3%",
        f"{early:.0f} MB and {late:.0f} MB", late <= early * 1.03,
    )  # fmt: skip


def loops(file: Path, seconds: float) -> float:
    """Rows per second and processor of loops over a file, one on each processor at the same time."""
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        store = os.environ["MLFLOW_TRACKING_URI"]
        jobs = [(file, number, seconds, store) for number in sorted(os.sched_getaffinity(0))]
        return float(np.mean(pool.starmap(loop, jobs, chunksize=1)))


def loop(file: Path, processor: int, seconds: float, store: str) -> float:
    """Rows per second of a loop over a file with one session on one processor, as a user would write it."""
    os.sched_setaffinity(0, {processor})
    os.environ["MLFLOW_TRACKING_URI"] = store  # the tests' set-up, which a new process imports, removes it
    session = InferenceSession("transformer/1", overrides={"threads": 1, "spinning": False})
    session.predict({name: np.ones((32, 64), np.int64) for name in ("input_ids", "attention_mask")})
    begun, done = time.monotonic(), 0
    while True:
        for part in pq.ParquetFile(file).iter_batches(batch_size=32, columns=["input_ids", "attention_mask"]):
            feed = {name: part.column(name).flatten().to_numpy().reshape(-1, 64) for name in part.schema.names}
            session.predict(feed)
            done += int(part.num_rows)
            if time.monotonic() - begun > seconds:
                return done / (time.monotonic() - begun)


def workers_mb() -> float:
    """The resident memory of all workers of `onward batch` on this machine, in MB, without what they share."""
    total = 0
    for process in psutil.process_iter(["cmdline"]):
        if any("MapWorker" in word for word in process.info["cmdline"] or []):
            try:
                memory = process.memory_full_info()
                total += memory.uss
            except psutil.NoSuchProcess:
                continue
    return total / 2**20


def many(folder: Path) -> Iterator[Finding]:
    """Time `params`, `verdict` and `status` with 1,000 models."""
    count = 1000
    root = project(folder / "many", {}, **{f"model{number}": {"seed": number} for number in range(count)})
    for name in ("params (first)", "params (unchanged)"):
        yield _timed(name, ["-m", "onward.stages", "params"], root)
    yield _timed("verdict (nothing has run)", ["-m", "onward.stages", "verdict"], root)
    yield _timed("status (no version)", ["-m", "onward.cli", "status"], root)


def _timed(name: str, arguments: list[str], root: Path) -> Finding:
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
    subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, check=False)
    seconds = time.monotonic() - begun
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used
    return Finding(f"{name}, 1,000 models", "under 5 s", f"{seconds:.1f} s ({cpu:.1f} s of CPU)", seconds < 5)


def main() -> None:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--models", type=int, default=200, help="models of the pipelines")
    parser.add_argument("--killed", type=int, default=20, help="models during the kills")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the batch")
    parser.add_argument("--out", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="onward-fleet-bench-", ignore_cleanup_errors=True) as temporary:
        parts = {
            "pipelines": lambda: pipelines(arguments.models, Path(temporary) / "pipelines"),
            "kills": lambda: kills(arguments.killed, Path(temporary) / "kills"),
            "batch": lambda: batch(arguments.rows, Path(temporary) / "batch"),
            "many": lambda: many(Path(temporary) / "many"),
        }
        for part in arguments.only:
            (Path(temporary) / part).mkdir()
            for finding in parts[part]():
                print(f"{finding.figure}: {finding.found} (limit: {finding.wanted})", flush=True)
                findings.append(finding)
    machine, command = hardware.describe(), " ".join(["python -m benchmarks.fleet", *sys.argv[1:]])
    page = f"# Fleets\n\n`{command}` on {machine.cpu} ({hardware.kind(machine)}).\n\n{table(findings)}"
    if arguments.out:
        arguments.out.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
