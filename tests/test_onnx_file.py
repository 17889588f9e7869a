"""ONNX files from any source: a fault is reported in one line, and no file outside the folder is read."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onward.registry.artifact import onnx_file
from onward.registry.errors import UsageError
from tests.onnx_models import linear


def test_a_valid_file_is_described(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx")
    onnx_file.check(path)
    graph = onnx_file.describe(path)
    assert (graph.opsets, graph.ir_version, graph.parameters) == ({"ai.onnx": 17}, 10, 12)
    assert graph.operators == {"MatMul": 1, "Relu": 1}
    assert [(s.name, s.dtype, s.shape) for s in graph.inputs] == [("x", "float32", ["batch", 4])]


def test_external_data_is_part_of_the_file(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", external=True)
    onnx_file.check(path)
    assert [file.path for file in onnx_file.digests(path)] == ["m.onnx", "m.onnx.data"]
    assert onnx_file.describe(path).size_bytes > path.stat().st_size


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = linear(tmp_path / "m.onnx", external=True)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(UsageError, match=r"external data 'm\.onnx\.data' is missing"):
        onnx_file.check(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret"])
def test_external_data_outside_the_folder_is_rejected(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 48)
    path = linear(folder / "m.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="outside the folder"):
        onnx_file.check(path)


def test_weights_over_the_limit_go_to_an_external_file_and_compute_the_same(tmp_path: Path) -> None:
    model = onnx.load(linear(tmp_path / "m.onnx"))
    model.graph.initializer[0].raw_data = bytes(4096)
    model.graph.initializer[0].dims[:] = [4, 256]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 256
    onnx_file.save(model, tmp_path / "big.onnx", external_over=1000)
    assert [path.name for path in onnx_file.files(tmp_path / "big.onnx")] == ["big.onnx", "big.onnx.data"]
    onnx_file.check(tmp_path / "big.onnx")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_or_corrupt_file_gives_one_line_and_no_traceback(tmp_path: Path, data: st.DataObject) -> None:
    content = linear(tmp_path / "m.onnx").read_bytes()
    end = data.draw(st.integers(0, len(content) - 1))
    tail = data.draw(st.binary(max_size=20))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content[:end] + tail)
    said = ""
    try:
        onnx_file.check(broken)
    except UsageError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or said.startswith("broken.onnx: ")


def test_a_file_that_is_not_onnx_is_rejected(tmp_path: Path) -> None:
    for content in (b"", b"hello", b"\x00" * 100):
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"m\.onnx: "):
            onnx_file.check(path)
    with pytest.raises(UsageError, match="there is no such file"):
        onnx_file.check(tmp_path / "none.onnx")
