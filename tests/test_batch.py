"""`onward batch`: columns and parts, and runs on a Ray cluster of this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.registry.batch.columns import column, groups
from onward.registry.batch.parts import adopt, divide, files_in, place
from onward.registry.batch.worker import Work, Worker
from onward.registry.errors import Refused, UsageError
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import promotion
from tests import servers
from tests.store_factory import add_candidate, fresh_store


def nested(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    return draw(st.integers(-9, 9)) if not shape else [nested(draw, shape[1:]) for _ in range(shape[0])]


@st.composite
def columns_of_lists(draw: st.DrawFn) -> tuple[list[Any], int]:
    """Rows of nested lists. Each row is an array, and its shape differs from that of other rows."""
    rank = draw(st.integers(0, 3))
    shapes = [tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(draw(st.integers(1, 6)))]
    return [nested(draw, shape) for shape in shapes], rank


@given(drawn=columns_of_lists())
def test_rows_become_arrays_and_arrays_become_the_same_rows(drawn: tuple[list[Any], int]) -> None:
    rows, rank = drawn
    kind = pa.int64()
    for _ in range(rank):
        kind = pa.list_(kind)
    table = pa.table({"x": pa.array(rows, kind)})
    parts = []
    for chosen, arrays in groups(table, {"x": ["?"] * rank}, {"x": "x"}):
        for position, values in zip(chosen, arrays["x"], strict=True):
            assert values.tolist() == rows[position]
        parts.append((chosen, arrays["x"]))
    assert sorted(np.concatenate([chosen for chosen, _ in parts]).tolist()) == list(range(len(rows)))
    assert column(parts).to_pylist() == rows


def test_rows_are_grouped_by_the_shapes_of_all_inputs() -> None:
    table = pa.table({"ids": [[1, 2], [3], [4, 5], [6]], "mask": [[1], [1], [1], [1, 1]]})
    found = [(chosen.tolist(), arrays["ids"].shape) for chosen, arrays in groups(
        table, {"ids": ["n"], "mask": ["m"]}, {"ids": "ids", "mask": "mask"}
    )]  # fmt: skip
    assert sorted(found) == [([0, 2], (2, 2)), ([1], (1, 1)), ([3], (1, 1))]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 12), pa.large_list(pa.float32())])
def test_a_flat_list_takes_the_shape_of_an_input_with_fixed_sizes(kind: pa.DataType) -> None:
    table = pa.table({"image": pa.array([list(range(12)), list(range(12, 24))], kind)})
    ((_, arrays),) = groups(table, {"image": [1, 3, 4]}, {"image": "image"})
    assert arrays["image"].shape == (2, 1, 3, 4)
    assert arrays["image"].ravel().tolist() == list(range(24))


def test_a_column_of_tensors_is_an_array() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    table = pa.table({"x": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
    ((_, arrays),) = groups(table, {"x": [3, 4]}, {"x": "x"})
    assert np.array_equal(arrays["x"], values)


def test_slices_and_chunks_of_columns_give_their_own_rows() -> None:
    table = pa.concat_tables([pa.table({"x": [[1, 2], [3, 4]]}), pa.table({"x": [[5, 6], [7, 8]]})]).slice(1, 2)
    ((_, arrays),) = groups(table, {"x": [2]}, {"x": "x"})
    assert arrays["x"].tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1.0, None]), "contains nulls"),
        (pa.array([[1.0], None]), "contains nulls"),
        (pa.array([[1.0, None]]), "contains nulls"),
        (pa.array([[[1], [2, 3]]]), "row 0 contains lists of"),
        (pa.array([b"x"]), "cannot be an array"),
        (pa.array([{"a": 1}]), "cannot be an array"),
    ],
)
def test_a_column_that_is_no_array_is_reported(values: pa.Array, message: str) -> None:
    with pytest.raises(UsageError, match=rf"input x: .*{message}"):
        list(groups(pa.table({"x": values}), {"x": ["?"]}, {"x": "x"}))


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(1, 400), min_size=1, max_size=4), width=st.integers(1, 2000), batch=st.integers(1, 64))
def test_parts_cover_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], width: int, batch: int
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    with pq.ParquetWriter(folder / "x.parquet", pa.schema({"x": pa.list_(pa.float32(), width)})) as writer:
        for count in rows:
            values = np.random.default_rng(0).random(count * width, np.float32)
            writer.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, width)}), row_group_size=count)
    source = place(str(folder))
    parts = list(divide(source, files_in(source)[0], ["x"], batch))
    seen = {(part.row_group, row) for part in parts for row in range(part.start, part.start + part.rows)}
    assert len(seen) == sum(part.rows for part in parts) == sum(rows)
    assert len({part.output for part in parts}) == len(parts)


def test_files_of_the_same_name_in_two_folders_have_results_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / name / "part.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "_ignored.parquet")
    source = place(str(tmp_path))
    parts = [part for path in files_in(source) for part in divide(source, path, ["x"], 1)]
    assert len({part.output for part in parts}) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such file"), ("folder", "contains no .parquet file"), (b"PK", "cannot be read as a parquet")],
)
def test_input_that_is_not_there_or_no_parquet_file_is_reported(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "in.parquet"
    if content == "folder":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    source = place(str(path))
    with pytest.raises(UsageError, match=message):
        [list(divide(source, file, ["x"], 1)) for file in files_in(source)]


def test_a_missing_column_is_reported_with_those_that_are_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "in.parquet")
    source = place(str(tmp_path / "in.parquet"))
    with pytest.raises(UsageError, match=r"no column 'x' \(--column INPUT=COLUMN names another\); it has pixels"):
        list(divide(source, files_in(source)[0], ["x"], 1))


def test_a_folder_of_results_belongs_to_one_version_and_one_input(tmp_path: Path) -> None:
    target = place(str(tmp_path / "out"))
    assert adopt(target, {"sha256": "a"}) == set()
    (tmp_path / "out" / "x-0.parquet").touch()
    (tmp_path / "out" / ".x-1.parquet.unfinished").touch()
    assert adopt(target, {"sha256": "a"}) == {"x-0.parquet"}
    with pytest.raises(Refused, match="another run"):
        adopt(target, {"sha256": "b"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(Refused, match="not empty"):
        adopt(place(str(tmp_path / "other")), {"sha256": "a"})


# Runs of the command, on one store and one cluster each.


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with version 1 of cnn, y = 2 x, live in staging, and version 2, y = 3 x."""
    folder = tmp_path_factory.mktemp("batch")
    with pytest.MonkeyPatch.context() as patch:
        store = fresh_store(folder, patch)
        add_candidate(store, "cnn", 2.0)
        add_candidate(store, "cnn", 3.0)
        promotion.promote("cnn", "staging", reason="first", version=1, store=store)
        yield folder


def rows(folder: Path, count: int = 1000) -> np.ndarray[Any, Any]:
    """Write two files with `count` rows each, in row groups of 300, and return all inputs."""
    values = np.random.default_rng(3).standard_normal((2 * count, 4)).astype(np.float32)
    folder.mkdir(parents=True)
    for number in range(2):
        part = values[number * count : (number + 1) * count]
        ids = pa.array(range(number * count, (number + 1) * count))
        table = pa.table({"id": ids, "numbers": list(part)})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=300)
    return values


def batch(*arguments: str, **variables: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, the JSON answer, stderr) of `onward batch`."""
    done = subprocess.run(
        [sys.executable, "-m", "onward.cli", "batch", *arguments, "--json"],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def test_every_row_gets_its_answer_and_a_second_run_only_what_is_missing(home: Path) -> None:
    values = rows(home / "in")
    arguments = ["cnn@staging", "--input", str(home / "in"), "--output", str(home / "out"), "--column", "x=numbers"]
    code, answer, errors = batch(*arguments)
    assert code == 0, errors
    assert (answer["rows"], answer["parts"], answer["known"], answer["version"]) == (2000, 8, 0, 1)
    table = pq.read_table(home / "out").sort_by("id")
    assert table.column_names == ["id", "y"]
    assert np.array_equal(np.stack(table.column("y").to_pylist()).astype(np.float32), values * 2)
    files = sorted((home / "out").glob("*.parquet"))
    stamps = {pq.read_schema(file).metadata[b"onward.sha256"].decode() for file in files}
    assert stamps == {answer["sha256"]}
    assert pq.read_schema(files[0]).metadata[b"onward.version"] == b"1"
    assert not list((home / "out").glob(".*"))

    files[3].unlink()
    before = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    code, answer, errors = batch(*arguments)
    assert (code, answer["parts"], answer["known"]) == (0, 1, 7), errors
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert pq.read_table(home / "out").num_rows == 2000

    code, _, errors = batch("cnn/2", *arguments[1:])
    assert code == 1
    assert "contains results of another run" in errors


def test_rows_that_the_model_refuses_fail_their_part_alone(home: Path) -> None:
    (home / "bad").mkdir()
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0, 4.0]] * 10}), home / "bad" / "good.parquet")
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0]]}), home / "bad" / "short.parquet")
    arguments = ["cnn/1", "--input", str(home / "bad"), "--output", str(home / "bad-out")]
    code, answer, _ = batch(*arguments)
    assert (code, answer["rows"], answer["parts"]) == (1, 10, 1)
    ((name, reason),) = answer["failed"].items()
    assert name.startswith("short-")
    assert "short.parquet: rows from 0 of row group 0: " in reason
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0, 4.0]]}), home / "bad" / "good.parquet")
    code, _, errors = batch(*arguments)
    assert code == 1
    assert "contains results of another run (inputs" in errors  # an input file changed


def test_a_mistake_in_the_arguments_is_reported_before_a_cluster_is_started(home: Path) -> None:
    (home / "one.parquet").unlink(missing_ok=True)
    pq.write_table(pa.table({"x": [[1.0, 2.0, 3.0, 4.0]]}), home / "one.parquet")
    source = ["--input", str(home / "one.parquet"), "--output", str(home / "nowhere")]
    for arguments, message in (
        (["cnn/1", *source, "--column", "z=x"], "there is no input 'z'"),
        (["cnn/1", *source, "--column", "x"], "write INPUT=VALUE"),
        (["cnn/1", *source, "--set", "x=one"], "is not JSON"),
        (["cnn/9", *source], "9"),
        (["cnn/1", "--input", str(home / "none"), "--output", str(home / "nowhere")], "there is no such file"),
        (["cnn/1", *source, "--address", "localhost:1"], "cannot reach an MLflow store in a file"),
    ):
        code, _, errors = batch(*arguments)
        assert code == 2, errors
        assert message in errors
        assert "Traceback" not in errors
    assert not (home / "nowhere").exists()


def test_a_worker_refuses_another_version_than_the_one_that_the_run_began_with(home: Path) -> None:
    before = os.sched_getaffinity(0)
    work = Work(
        "cnn@staging", f"sqlite:///{home / 'mlflow.db'}", place(str(home)), place(str(home / "o")), {"x": "x"}, {}, 4,
        1, False, {"version": "1", "sha256": "0" * 64, "manifest": ""},
    )  # fmt: skip
    try:
        with pytest.raises(Refused, match="run again with cnn/1"):
            Worker(work)
    finally:
        os.sched_setaffinity(0, before)


def test_files_of_an_object_store_are_read_and_written(home: Path, tmp_path: Path) -> None:
    rows(tmp_path / "in", 100)
    variables = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with servers.objects(tmp_path) as url, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        host = url.removeprefix("http://")
        at = f"?endpoint_override={host}&scheme=http"
        files, path = pafs.FileSystem.from_uri(f"s3://mlflow/in{at}")
        files.create_dir(path, recursive=True)
        pafs.copy_files(str(tmp_path / "in"), path, destination_filesystem=files)
        code, answer, errors = batch(
            "cnn/1", "--input", f"s3://mlflow/in{at}", "--output", f"s3://mlflow/out{at}", "--column", "x=numbers"
        )
        assert code == 0, errors
        assert answer["rows"] == 200
        assert pq.read_table("mlflow/out", filesystem=files).num_rows == 200


def test_overrides_replace_tuned_options_of_a_session(home: Path) -> None:
    session = InferenceSession("cnn/1", overrides={"threads": 1, "spinning": False})
    assert session.loaded._session.get_session_options().intra_op_num_threads == 1
    assert session.predict(np.ones((1, 4), np.float32)).tolist() == [[2.0] * 4]
    for wrong in ({"thread": 1}, {"threads": 0}):
        with pytest.raises(UsageError, match="overrides: "):
            InferenceSession("cnn/1", overrides=wrong)
    import onnxruntime

    with pytest.raises(UsageError, match="not both"):
        InferenceSession("cnn/1", overrides={"threads": 1}, session_options=onnxruntime.SessionOptions())
    assert math.isclose(float(session.predict(np.zeros((1, 4), np.float32)).sum()), 0.0)
