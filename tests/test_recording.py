"""Recording of requests: a bounded queue, a sample per window, complete files, and only what may be kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from pyarrow import parquet

from onward.registry.errors import UsageError
from onward.registry.monitoring import recorded
from onward.registry.monitoring.recorded import Row
from onward.registry.serve import queued, recording
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.observer import Observation
from onward.registry.serve.recording import Recorder, Recording, parse_keep

SERVER = "0123456789abcdef"


def observation(number: int = 0, **changes: Any) -> Observation:
    inputs = {"x": np.full((1, 4), number, np.float32), "ids": np.array([[number]]), "name": np.array(["Ann"], object)}
    fields: dict[str, Any] = {
        "model": "cnn", "target": "cnn@production", "version": "3", "sha256": "a" * 64, "entry": 7,
        "request": f"r{number}", "arrived": time.time(), "latency_us": 900.0, "queue_us": 100.0, "compute_us": 800.0,
        "outcome": "success", "inputs": inputs, "outputs": {"y": np.ones((1, 2), np.float32)},
    }  # fmt: skip
    return Observation(**{**fields, **changes})


def row(arrived: float, inputs: Mapping[str, Any] | None = None, target: str = "cnn@production") -> Row:
    tensors = tuple(recorded.to_tensor(name, value, "keep", 10**6) for name, value in (inputs or {}).items())
    return Row(target, "3", "a" * 64, 7, "host", "r", arrived, 9.0, 1.0, 8.0, "success", "live", 4, tensors)


def recorder(folder: Path, **options: Any) -> Recorder:
    made = Recorder(Recording(folder, **options), Metrics(), {"cnn": "host"})
    made.start()
    return made


def counted(made: Recorder, name: str) -> float:
    return sum(made._metrics.counters[name].values())


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    for number in range(5):
        made.seen(observation(number))
    made.seen(observation(5, outcome="failed", outputs=None))
    made.close()
    rows, problems = recorded.read(tmp_path, "cnn@production")
    assert problems == []
    assert [one.request for one in rows] == [f"r{number}" for number in range(6)]
    first = rows[1]
    assert (first.version, first.sha256, first.entry, first.host, first.cause) == ("3", "a" * 64, 7, "host", "live")
    assert (first.latency_us, first.queue_us, first.compute_us, first.outcome) == (900, 100, 800, "success")
    found = recorded.arrays(first.inputs)
    assert np.array_equal(found["x"], np.full((1, 4), 1, np.float32))
    assert np.array_equal(found["ids"], [[1]])
    assert np.array_equal(recorded.arrays(first.outputs)["y"], np.ones((1, 2)))
    assert (rows[5].outcome, rows[5].outputs) == ("failed", ())
    assert counted(made, "onward_recorded_requests") == 6


def test_texts_are_dropped_unless_a_rule_says_otherwise(tmp_path: Path) -> None:
    for rules, kept, digest in (({}, None, ""), ({"name": "keep"}, ["Ann"], None), ({"cnn/name": "hash"}, None, None)):
        folder = tmp_path / "-".join(rules)
        made = recorder(folder, keep=rules)
        made.seen(observation())
        made.close()
        (one,), _ = recorded.read(folder, "cnn@production")
        name = next(tensor for tensor in one.inputs if tensor.name == "name")
        value = name.array()
        assert (None if value is None else value.tolist()) == kept
        assert name.sha256 == digest if digest is not None else len(name.sha256) == 64
        assert (b"Ann" in next((folder / "cnn@production").iterdir()).read_bytes()) == (rules == {"name": "keep"})


def test_of_numbers_a_rule_keeps_less_and_large_tensors_are_hashed(tmp_path: Path) -> None:
    made = recorder(tmp_path, keep={"ids": "drop", "x": "hash"}, tensor_bytes=100)
    made.seen(observation(inputs={"x": np.ones(3), "ids": np.ones(2, int), "big": np.ones(100), "small": np.ones(2)}))
    made.close()
    (one,), _ = recorded.read(tmp_path, "cnn@production")
    found = {tensor.name: (tensor.data is not None, bool(tensor.sha256)) for tensor in one.inputs}
    assert found == {
        "x": (False, True), "ids": (False, False), "big": (False, True), "small": (True, True),
    }  # fmt: skip


@given(
    arrays_of.arrays(
        st.sampled_from([np.dtype(name) for name in ("f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4")]),
        arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
def test_every_array_of_numbers_survives(array: Any) -> None:
    again = recorded.to_tensor("x", array, "keep", 10**6).array()
    assert again is not None
    assert (again.shape, again.dtype.kind, again.dtype.itemsize) == (
        array.shape,
        array.dtype.kind,
        array.dtype.itemsize,
    )
    assert np.array_equal(again, array, equal_nan=array.dtype.kind == "f")


@given(st.text(min_size=1, max_size=300))
def test_every_target_has_a_folder_of_its_own_inside_the_folder(target: str) -> None:
    folder = recorded.folder_of(Path("/records"), target)
    assert folder.parent == Path("/records")
    assert folder.name not in ("", ".", "..")
    assert len(folder.name.encode()) < 255
    assert folder != recorded.folder_of(Path("/records"), f"{target}x")


def test_names_that_are_paths_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    for target in ("../evil", "/etc/passwd", "./model.onnx", "..", "a/../../b", "x" * 500):
        path = recorded.write(folder, target, [row(1.0, target=target)], 1.0, SERVER)
        assert path.resolve().is_relative_to(folder.resolve())
        assert len(recorded.read(folder, target)[0]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_full_queue_drops_and_counts_and_never_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "MOST_REQUESTS", 50)
    go_on, begun = threading.Event(), threading.Event()
    made = Recorder(Recording(tmp_path), Metrics(), {})
    real = made._row

    def slow(request: Observation) -> Row:
        begun.set()
        assert go_on.wait(60)
        return real(request)

    monkeypatch.setattr(made, "_row", slow)
    made.start()
    made.seen(observation())
    assert begun.wait(60)
    start = time.monotonic()
    for number in range(500):
        made.seen(observation(number))
    assert time.monotonic() - start < 5
    assert counted(made, "onward_recording_dropped") == 450
    go_on.set()
    made.close()
    assert counted(made, "onward_recorded_requests") == 51
    made.seen(observation())
    assert counted(made, "onward_recording_dropped") == 451


def test_the_queue_is_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued, "MOST_BYTES", 1000)
    made = Recorder(Recording(tmp_path), Metrics(), {})  # its thread does not run yet
    for _ in range(3):
        made.seen(observation(inputs={"x": np.zeros(100, np.float32)}, outputs=None))
    made.seen(observation(inputs={"x": np.array(["a" * 300], object)}, outputs=None))
    assert counted(made, "onward_recording_dropped") == 2
    made.start()
    made.close()


def test_a_window_has_a_sample_of_its_requests(tmp_path: Path) -> None:
    made = recorder(tmp_path, samples=10)
    for number in range(200):
        made.seen(observation(number))
    made.close()
    rows, _ = recorded.read(tmp_path, "cnn@production")
    assert 10 <= len(rows) <= 20  # the minute may have ended meanwhile
    assert any(int(one.request[1:]) > 20 for one in rows)


def test_a_window_that_is_over_becomes_a_file_without_further_requests(tmp_path: Path) -> None:
    made = recorder(tmp_path, window=0.2)
    made.seen(observation())
    end = time.monotonic() + 30
    while not recorded.read(tmp_path, "cnn@production")[0] and time.monotonic() < end:
        time.sleep(0.02)
    assert len(recorded.read(tmp_path, "cnn@production")[0]) == 1
    made.close()


def test_two_servers_write_to_one_folder(tmp_path: Path) -> None:
    both = [recorder(tmp_path) for _ in range(2)]
    for made in both:
        made.seen(observation())
    for made in both:
        made.close()
    assert len(recorded.read(tmp_path, "cnn@production")[0]) == 2
    assert len(list((tmp_path / "cnn@production").iterdir())) == 2


def test_a_file_is_complete_or_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recorder(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    made.seen(observation())
    made.close()
    assert counted(made, "onward_recording_dropped") == 1
    assert counted(made, "onward_recorded_requests") == 0
    assert recorded.read(tmp_path, "cnn@production") == ([], [])
    assert list((tmp_path / "cnn@production").iterdir()) == []


def test_damaged_files_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    good = recorded.write(tmp_path, "cnn@production", [row(1.0, {"x": np.ones(3)})], 1.0, SERVER)
    folder = good.parent
    (folder / f"20260101T000000Z-{SERVER}.parquet").write_bytes(good.read_bytes()[:-20])
    (folder / f"20260102T000000Z-{SERVER}.parquet").write_bytes(b"")
    parquet.write_table(pa.table({"a": [1]}), folder / f"20260103T000000Z-{SERVER}.parquet")
    wrong = [recorded.Tensor("x", "<f4", (5,), b"1234", "")]
    for day, dtype in ((4, "<f4"), (5, "O"), (6, "nonsense"), (7, "text")):
        bad = Row(**{**vars(row(1.0)), "inputs": (recorded.Tensor("x", dtype, (5,), b"1234", ""), *wrong)})
        recorded.write(tmp_path, "cnn@production", [bad], 1767225600.0 + 86400 * (day - 1), SERVER)
    (folder / "notes.txt").write_text("not ours")
    rows, problems = recorded.read(tmp_path, "cnn@production")
    assert len(rows) == 1
    assert len(problems) == 7
    assert all("cannot be read and is left out" in problem for problem in problems)
    assert len(recorded.read(tmp_path, "cnn@production", tensors=False)[0]) == 5
    with pytest.raises(UsageError, match="there is no such folder"):
        recorded.read(tmp_path / "other", "cnn@production")
    assert recorded.read(tmp_path, "other@production") == ([], [])
    assert recorded.targets(tmp_path) == ["cnn@production"]


def test_old_files_and_those_over_the_size_limit_are_deleted_and_no_others(tmp_path: Path) -> None:
    hour = 3600.0
    files = [recorded.write(tmp_path, "cnn@production", [row(1.0)], n * hour, SERVER) for n in range(1, 6)]
    size = files[0].stat().st_size
    own = files[0].parent / "notes.parquet"
    own.write_text("not ours")
    left = files[0].parent / f".{files[0].name}.0123456789abcdef"
    left.write_text("half")
    os.utime(left, (1, 1))
    assert recorded.expire(tmp_path, 3.5, 10**9, now=6 * hour) == 2
    assert [file.exists() for file in files] == [False, False, True, True, True]
    assert recorded.expire(tmp_path, 1000, int(size * 1.5), now=6 * hour) == 2
    assert [file.exists() for file in files] == [False, False, False, False, True]
    assert own.exists()
    assert not left.exists()


def test_rules_for_tensors_are_checked() -> None:
    assert parse_keep(["a=b=drop", "cnn/x=hash"]) == {"a=b": "drop", "cnn/x": "hash"}
    for wrong in (["x"], ["=drop"], ["x=throw"], ["x=drop", "x=keep"]):
        with pytest.raises(UsageError, match="--record-tensor"):
            parse_keep(wrong)


def test_a_folder_that_cannot_be_written_to_is_an_error_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        Recorder(Recording(file), Metrics(), {})


def test_recording_needs_pyarrow_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"onward\[monitoring\]"):
        Recorder(Recording(tmp_path), Metrics(), {})


def test_elements_are_counted_over_all_inputs() -> None:
    assert recording.elements({"a": np.ones((2, 3)), "b": 1}) == 7
