"""The thread count never exceeds the quota of the container or the affinity of the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onward.registry import processors
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.inference.session import InferenceSession
from onward.stages.workers.worker import Worker
from tests.store_factory import scale_model


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One usable processor of 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    return monkeypatch


def tree(root: Path, said: str, **files: str) -> Path:
    """A fake /proc/self/cgroup with the content `said`, and files under /sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(said)
    for path, text in files.items():
        target = root / "sys" / "fs" / "cgroup" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def v1(folder: str, quota: int) -> dict[str, str]:
    """The files of a version 1 cgroup."""
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


V1 = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n"


@pytest.mark.parametrize(
    ("said", "files", "wanted"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "12800000 100000\n"}, 64),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "50000 50000"}, 1),
        ("0::/not/here\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/../outside\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/a:b\n", {"a:b/cpu.max": "500000 100000"}, 5),
        (V1, v1("cpu,cpuacct/docker/abc", 250000), 3),
        (V1, v1("cpu", 200000), 2),
        (V1, v1("cpu", -1), 64),
        (V1 + "0::/x\n", {"unified/x/cpu.max": "600000 100000", **v1("cpu", 700000)}, 6),
        (V1 + "0::/x\n", {"unified/x/cpu.max": "800000 100000", **v1("cpu", 700000)}, 7),
        ("1:cpu:/\n", v1("cpu", 0), 64),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
        ("nonsense\n", {}, 64),
        ("", {}, 64),
    ],
)
def test_the_smallest_cgroup_limit_applies(
    tmp_path: Path, machine: pytest.MonkeyPatch, said: str, files: dict[str, str], wanted: int
) -> None:
    assert processors.count(tree(tmp_path, said, **files)) == wanted


def test_without_cgroups_the_affinity_applies(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    assert processors.count(tmp_path) == 64
    machine.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert processors.count(tmp_path) == 3
    assert processors.count(tree(tmp_path, "0::/\n", **{"cpu.max": "200000 100000"})) == 2


@pytest.fixture
def container(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """Two usable processors of 64."""
    root = tree(tmp_path / "root", "0::/\n", **{"cpu.max": "200000 100000"})
    quotas = processors._quotas
    machine.setattr(processors, "_quotas", lambda _: quotas(root))
    machine.setattr("psutil.cpu_count", lambda logical=True: 64 if logical else 32)


@pytest.mark.parametrize(
    ("options", "threads"),
    [
        (SessionOptions(), 2),
        (SessionOptions(threads=1), 1),
        (SessionOptions(threads=2), 2),
        (SessionOptions(threads=64), 2),
        (SessionOptions(threads=8, affinity="2;3;4;5;6;7;8"), 2),
        (SessionOptions(threads=2, affinity="2"), 2),
        (SessionOptions(threads=2, affinity="65"), 2),
        (SessionOptions(spinning=False, execution_mode="parallel"), 2),
    ],
    ids=str,
)
def test_the_thread_count_of_a_container_follows_its_quota(
    container: None, options: SessionOptions, threads: int
) -> None:
    fitting = options.fitting_here()
    assert fitting.threads == threads
    made = fitting.to_onnxruntime()
    assert made.intra_op_num_threads == threads
    assert made.inter_op_num_threads == (2 if options.execution_mode == "parallel" else 0)


def test_a_session_and_a_worker_use_the_thread_count_of_the_container(container: None, tmp_path: Path) -> None:
    path = scale_model(tmp_path / "m.onnx", 2)
    assert InferenceSession(path)._loaded._session.get_session_options().intra_op_num_threads == 2
    with Worker.onnx(path, "m") as started:
        assert started.load["threads"] == 2
    assert (
        Worker.torch("models.digits:cnn", path, ["x"], ["y"], "m").load["threads"] == 2
    )  # otherwise the race would be unfair


def test_without_limits_onnx_runtime_chooses_the_thread_count(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(processors, "_quotas", lambda _: iter(()))
    assert SessionOptions(threads=65).fitting_here() == SessionOptions()
    assert SessionOptions(threads=64).fitting_here() == SessionOptions(threads=64)
