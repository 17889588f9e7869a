"""External data of an ONNX file with any names: every later check accepts the published files."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact import onnx_file
from onward.registry.artifact.manifest import check_folder, content_digest, write_manifest
from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.serving_plan import MODEL, Served, Serving, version_digest
from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.records import FileDigest, TensorSpec, Winner
from onward.registry.evidence.session_options import CPU
from onward.registry.inference.session import InferenceSession

# File names as exporters write them: Optimum, torch, one file per tensor, a folder of files.
LAYOUTS = {
    "none": [],
    "ours": ["model.onnx.data"],
    "Optimum": ["model.onnx_data"],
    "any name": ["weights.bin"],
    "a name like a graph": ["weights.onnx"],
    "a subfolder": ["data/weights.bin"],
    "two files": ["model.onnx_data", "data/b"],
    "a file a tensor": ["scale", "offset"],
    "not the shortest path": ["./weights", "weights"],
}


def scaled(folder: Path, locations: list[str], factor: float = 2.0) -> Path:
    """A model y = factor * x + 1 with its two weights in the files `locations`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"scale": np.full(4, factor, np.float32), "offset": np.ones(4, np.float32)}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    for number, tensor in enumerate(tensors if locations else []):
        location = locations[number % len(locations)]
        file = folder / location
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_bytes() if file.exists() and number else b""
        file.write_bytes(before + tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, location, len(before), len(tensor.raw_data))
        tensor.ClearField("raw_data")
    nodes = [helper.make_node("Mul", ["x", "scale"], ["z"]), helper.make_node("Add", ["z", "offset"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def version(folder: Path, main: Path, other: Path | None = None) -> tuple[Path, str]:
    """The folder of a version, and its sha256 from `publish`."""
    winners = [
        Winner(variant="plain", runtime=runtime, provider=provider, p50_ms=1, files=onnx_file.digests(path))
        for runtime, provider, path in (("cpu", CPU, main), ("openvino", "OpenVINOExecutionProvider", other))
        if path is not None
    ]
    served = {"cpu": Served(file=MODEL, provider=CPU)}
    if other is not None:
        served["openvino"] = Served(file=f"providers/openvino/{MODEL}", provider="OpenVINOExecutionProvider")
    specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in "xy"]
    others = {"openvino": onnx_file.files(other)} if other is not None else None
    target = folder / "version"
    build_folder(
        target, onnx_file.files(main), specs[:1], specs[1:], CPU, serving=Serving(served), others=others
    )  # fmt: skip
    return target, version_digest(winners)


def answer(path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=[CPU])
    return float(session.run(None, {"x": np.ones((1, 4), np.float32)})[0][0, 0])


@pytest.mark.parametrize("locations", LAYOUTS.values(), ids=LAYOUTS)
def test_the_published_sha256_matches_every_later_check(tmp_path: Path, locations: list[str]) -> None:
    folder, sha256 = version(tmp_path, scaled(tmp_path / "made", locations))
    files = check_folder(folder, sha256)
    assert len(files) == len(onnx_file.files(tmp_path / "made" / "m.onnx"))
    session = InferenceSession(folder)
    assert session.metadata.sha256 == sha256
    assert session.predict(np.ones((2, 4), np.float32))[1, 3] == 3.0


@pytest.mark.parametrize("locations", [names for names in LAYOUTS.values() if names])
def test_the_sha256_covers_external_data(tmp_path: Path, locations: list[str]) -> None:
    folder, sha256 = version(tmp_path, scaled(tmp_path / "made", locations))
    data = folder / locations[-1]
    data.write_bytes(bytes(len(data.read_bytes())))
    write_manifest(folder)
    with pytest.raises(Refused, match="was recorded"):
        check_folder(folder, sha256)


def test_two_providers_may_use_external_data_of_the_same_name(tmp_path: Path) -> None:
    names = ["model.onnx_data", "data/b"]
    main, other = scaled(tmp_path / "a", names), scaled(tmp_path / "b", names, 3.0)
    folder, sha256 = version(tmp_path, main, other)
    assert len(check_folder(folder, sha256)) == 6
    assert [answer(folder / MODEL), answer(folder / "providers" / "openvino" / MODEL)] == [3.0, 4.0]


@pytest.mark.parametrize(
    "name", ["MLmodel", "manifest.json", "serving.json", "model.onnx", "providers/x", "validation/x", "monitoring/x"]
)
def test_external_data_named_like_another_file_of_the_version_is_rejected(tmp_path: Path, name: str) -> None:
    main = scaled(tmp_path / "made", [name])
    with pytest.raises(Refused, match="has the name of another file of a version"):
        version(tmp_path, main)


@pytest.mark.parametrize("over", [True, False], ids=["two files", "one file"])
@pytest.mark.parametrize("locations", LAYOUTS.values(), ids=LAYOUTS)
def test_an_imported_file_keeps_its_weights_in_one_file(
    tmp_path: Path, locations: list[str], over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = scaled(tmp_path / "made", locations), tmp_path / "taken" / "model.onnx"
    target.parent.mkdir()
    if over:
        monkeypatch.setattr(onnx_file, "EXTERNAL_DATA_BYTES", 1)
    onnx_file.take_in(source, target)
    assert answer(target) == 3.0
    assert {path.name for path in target.parent.iterdir()} <= {"model.onnx", "model.onnx.data"}
    if not locations:
        assert target.read_bytes() == source.read_bytes()


def test_an_import_names_truncated_weights(tmp_path: Path) -> None:
    source = scaled(tmp_path / "made", ["weights.bin"])
    (source.parent / "weights.bin").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"m\.onnx: its external data cannot be read"):
        onnx_file.take_in(source, tmp_path / "model.onnx")


@given(st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1, max_size=5), st.randoms())
def test_the_content_digest_ignores_names_and_order(digests: list[str], random: Random) -> None:
    files = [FileDigest(path=f"{n}", sha256=digest, size_bytes=1) for n, digest in enumerate(digests)]
    other = [file.model_copy(update={"path": f"x/{file.path}"}) for file in files]
    random.shuffle(other)
    assert content_digest(files) == content_digest(other)
