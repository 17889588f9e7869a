"""Exports to Triton and KServe. Triton's text format is checked with the messages of the package tritonclient."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact.serving_plan import Served, Serving
from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.records import SweepPoint
from onward.registry.evidence.session_options import CPU, CUDA, OPENVINO, TENSORRT, SessionOptions
from onward.registry.other_servers import batching, exported, kserve, triton
from onward.registry.other_servers.exported import Exported, Tensor
from onward.registry.other_servers.text_format import Message, Symbol, quoted, to_text
from onward.registry.other_servers.triton_config import config, left_out
from onward.registry.store.store import Store
from tests.conftest import Command
from tests.store_factory import artifacts_of, scale_model, stage, three_candidates, version_for_two_providers

PARSE = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
texts = json.load(sys.stdin)
found = [text_format.Parse(text, model_config_pb2.ModelConfig()) for text in texts]
print(json.dumps([json_format.MessageToDict(one, preserving_proto_field_name=True) for one in found]))
"""


def parse(python: Path, *texts: str) -> list[dict[str, Any]]:
    """Read texts as Triton's ModelConfig, with the package's own protobuf."""
    done = subprocess.run([python, "-c", PARSE], input=json.dumps(texts), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


def version(
    *,
    inputs: Mapping[str, tuple[Any, ...]] | None = None,
    outputs: Mapping[str, tuple[Any, ...]] | None = None,
    options: SessionOptions | None = None,
    provider: str = CPU,
    dtype: str = "float32",
    **changes: Any,
) -> Exported:
    """A version with inputs and outputs of these shapes; samples are on the first axis."""

    def tensors(shapes: Mapping[str, tuple[Any, ...]]) -> list[Tensor]:
        return [Tensor(name, dtype, shape, 0 if shape else None, True) for name, shape in shapes.items()]

    known: dict[str, Any] = {
        "target": "cnn/3",
        "name": "cnn",
        "version": 3,
        "sha256": "a" * 64,
        "files": [Path("model.onnx")],
        "served": Served(file="model.onnx", provider=provider, options=options or SessionOptions()),
        "inputs": tensors(inputs or {"x": ("batch", 3, "width")}),
        "outputs": tensors(outputs or {"y": ("batch", 10)}),
        "sizes": {"batch": (1, 64, 1)},
    }
    return Exported(**known | changes)


def sweep(**points: float) -> list[SweepPoint]:
    """A batch sweep: throughputs by size, as b1=100."""
    found = []
    for name, throughput in points.items():
        size = int(name[1:])
        found.append(SweepPoint(sizes={"batch": size}, p50_ms=1000 * size / throughput, throughput=throughput))
    return found


def test_every_part_of_a_configuration_is_what_triton_reads(tritonclient: Path) -> None:
    cases = {
        "plain": version(sweep=sweep(b1=100, b4=300, b16=500, b64=510), knee={"batch": 16}),
        "tuned": version(
            options=SessionOptions(
                threads=2, graph_level="extended", execution_mode="parallel", arena=False, memory_pattern=True
            )
        ),
        "disabled": version(options=SessionOptions(graph_level="disabled", execution_mode="sequential")),
        "basic": version(options=SessionOptions(graph_level="basic")),
        "cuda": version(provider=CUDA, options=SessionOptions(tf32=True, nhwc=False)),
        "tensorrt": version(provider=TENSORRT),
        "openvino": version(provider=OPENVINO),
        "scalars": version(inputs={"x": ("batch",), "rate": ()}, outputs={"y": ("batch",)}),
        "strings": version(dtype="string"),
        'a "name"\n} input {': version(name="cnn", inputs={'x"\n} version_policy { latest { }': ("batch", "é")}),
    }
    texts = [to_text(config(one, batching.plan(one), [])) for one in cases.values()]
    found = dict(zip(cases, parse(tritonclient, *texts), strict=True))
    plain = found["plain"]
    assert (plain["name"], plain["backend"], plain["platform"]) == ("cnn", "onnxruntime", "onnxruntime_onnx")
    assert plain["version_policy"] == {"specific": {"versions": ["3"]}}
    assert plain["max_batch_size"] == 64
    assert plain["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "-1"]}]
    assert plain["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": ["10"]}]
    assert plain["dynamic_batching"] == {"preferred_batch_size": [4, 16], "max_queue_delay_microseconds": "10000"}
    assert plain["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert "optimization" not in plain
    assert found["tuned"]["parameters"] == {
        "intra_op_thread_count": {"string_value": "2"},
        "execution_mode": {"string_value": "1"},
        "enable_mem_arena": {"string_value": "0"},
        "enable_mem_pattern": {"string_value": "1"},
    }
    levels = {name: found[name]["optimization"]["graph"]["level"] for name in ("tuned", "disabled", "basic")}
    assert levels == {"tuned": 1, "disabled": 2, "basic": -1}
    assert found["disabled"]["parameters"] == {"execution_mode": {"string_value": "0"}}
    accelerators = {name: found[name]["optimization"]["execution_accelerators"] for name in list(cases)[4:7]}
    assert accelerators == {
        "cuda": {"gpu_execution_accelerator": [{"name": "cuda", "parameters": {"use_tf32": "1", "prefer_nhwc": "0"}}]},
        "tensorrt": {"gpu_execution_accelerator": [{"name": "tensorrt"}]},
        "openvino": {"cpu_execution_accelerator": [{"name": "openvino"}]},
    }
    assert [found[name]["instance_group"][0]["kind"] for name in accelerators] == ["KIND_GPU", "KIND_GPU", "KIND_CPU"]
    scalars = found["scalars"]
    assert scalars.get("max_batch_size", 0) == 0
    assert [one["dims"] for one in scalars["input"]] == [["-1"], ["1"]]
    assert scalars["input"][1]["reshape"] == {}
    assert found["strings"]["input"][0]["data_type"] == "TYPE_STRING"
    strange = found['a "name"\n} input {']
    assert strange["input"][0]["name"] == 'x"\n} version_policy { latest { }'
    assert strange["version_policy"] == {"specific": {"versions": ["3"]}}


def test_the_text_format_escapes_every_string() -> None:
    assert quoted("a\"b\\c\n'é") == '"a\\042b\\134c\\012\\047\\303\\251"'
    nested: Message = [("a", [("b", True), ("c", Symbol("D"))]), ("e", -1), ("f", [])]
    assert to_text(nested) == "a {\n  b: true\n  c: D\n}\ne: -1\nf {\n}\n"


@pytest.mark.parametrize(
    ("changes", "most", "preferred", "reason"),
    [
        ({}, 64, [], ""),
        ({"sizes": {}}, 4, [], ""),
        ({"sizes": {}, "sweep": sweep(b1=100, b8=400)}, 8, [8], ""),
        ({"sweep": sweep(b1=100, b8=105)}, 64, [], ""),
        ({"sweep": sweep(b4=100, b8=405)}, 64, [], ""),
        ({"sweep": sweep(b1=100, b8=200, b128=900)}, 64, [8], ""),
        ({"sizes": {"batch": (2, 8, 1)}}, 0, [], "at least 2 samples"),
        ({"sizes": {"batch": (1, 8, 4)}}, 0, [], "multiples of 4"),
        ({"without_batches": "the answers differ"}, 0, [], "the answers differ"),
        ({"inputs": {"x": (1, 4)}}, 0, [], "fixes the first size of x to 1"),
        ({"inputs": {"x": ("batch", 4), "z": ("rows", 4)}}, 0, [], "differ: batch, rows"),
        ({"inputs": {"x": ("batch", 4), "z": ()}}, 0, [], "z has its samples on no axis"),
        ({"outputs": {"y": (None, 4)}}, 64, [], ""),
        ({"outputs": [Tensor("y", "float32", (None,), 0, False)]}, 0, [], "an unknown size"),
        ({"outputs": [Tensor("y", "float32", ("n", "batch"), 1, True)]}, 0, [], "y has its samples on axis 1"),
    ],
)
def test_requests_are_joined_only_where_the_version_says_that_they_may_be(
    changes: dict[str, Any], most: int, preferred: list[int], reason: str
) -> None:
    outputs = changes.get("outputs")
    made = version(**{name: value for name, value in changes.items() if not isinstance(value, list) or name == "sweep"})
    if isinstance(outputs, list):
        made = Exported(**{**vars(made), "outputs": outputs})
    found = batching.plan(made)
    assert (found.most, list(found.preferred), reason in found.reason) == (most, preferred, True), found.reason


def test_a_version_becomes_a_repository_that_triton_can_load(
    store: Store, tmp_path: Path, onward: Command, tritonclient: Path
) -> None:
    stage(store, 2)
    repository = tmp_path / "repository"
    code, out, _ = onward("export-triton", "cnn@staging", "--out", str(repository), "--json")
    assert code == 0
    (result,) = json.loads(out)
    assert (result["model"], result["version"], result["changed"], result["max_batch_size"]) == ("cnn", 2, True, 4)
    folder = repository / "cnn"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "2/model.onnx", "warmup/2-0.bin"}
    source = artifacts_of(store, "cnn", 2)
    assert (folder / "2" / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()
    assert np.array_equal(np.frombuffer((folder / "warmup" / "2-0.bin").read_bytes(), "<f4"), np.arange(4))
    (found,) = parse(tritonclient, (folder / "config.pbtxt").read_text())
    (warm_up,) = found["model_warmup"]
    assert warm_up["batch_size"] == 1
    assert warm_up["inputs"] == {"x": {"data_type": "TYPE_FP32", "dims": ["4"], "input_data_file": "2-0.bin"}}
    assert found["default_model_filename"] == "model.onnx"


def test_other_versions_stay_and_the_same_version_is_written_once(store: Store, tmp_path: Path) -> None:
    first, second = exported.read("cnn/1"), exported.read("cnn/2")
    assert triton.write(first, tmp_path / "out").changed
    before = (tmp_path / "out" / "cnn" / "config.pbtxt").read_text()
    assert not triton.write(first, tmp_path / "out").changed
    folder = triton.write(second, tmp_path / "out").folder
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "config.pbtxt", "warmup"]
    assert "versions: 2" in (folder / "config.pbtxt").read_text()
    assert triton.write(first, tmp_path / "out").changed, "an earlier version is live again"
    assert (folder / "config.pbtxt").read_text() == before
    assert (folder / "2" / "model.onnx").is_file()
    (folder / "2" / "model.onnx").write_bytes(b"another")
    with pytest.raises(Refused, match=r"contains another version 2 of cnn \(model\.onnx differ\)"):
        triton.write(second, tmp_path / "out")
    (folder / "config.pbtxt").write_text(before + "# mine\n")
    with pytest.raises(Refused, match="was changed since"):
        triton.write(first, tmp_path / "out")
    (folder / "config.pbtxt").write_text('name: "cnn"\n')
    with pytest.raises(Refused, match="was not written by Onward"):
        triton.write(first, tmp_path / "out")


def test_files_that_differ_from_the_published_ones_are_not_exported(store: Store, tmp_path: Path) -> None:
    exported.read("cnn@staging")
    (cached,) = (tmp_path / "cache" / "onward").glob("*/model.onnx")
    cached.write_bytes(cached.read_bytes() + b" ")
    with pytest.raises(Refused, match=r"model\.onnx has changed"):
        exported.read("cnn@staging")


def test_external_data_and_the_winner_of_a_runtime_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = version_for_two_providers(tmp_path)
    chosen = exported.read(str(folder), name="two")
    assert (chosen.served.provider, chosen.files[0].parent.name) == (OPENVINO, "openvino")
    assert any("OpenVINO's precision" in note for note in left_out(chosen))
    other = exported.read(str(folder), name="two", runtime="cpu")
    assert other.served.provider == CPU
    assert any("allow_spinning" in note for note in left_out(other))
    with pytest.raises(UsageError, match="--runtime cuda: the version has no winner"):
        exported.read(str(folder), name="two", runtime="cuda")
    weights = numpy_helper.from_array(np.ones((4, 300), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 300])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    large = exported.read("large.onnx", version=7)
    place = triton.write(large, tmp_path / "out").folder / "7"
    assert sorted(path.name for path in place.iterdir()) == ["large.onnx", "weights.bin"]
    assert 'default_model_filename: "large.onnx"' in (place.parent / "config.pbtxt").read_text()


def test_what_triton_cannot_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="has type complex64, which Triton does not have"):
        triton.write(version(dtype="complex64"), tmp_path)
    scale_model(tmp_path / "a model.onnx", 2)
    with pytest.raises(UsageError, match="give --name"):
        exported.read("./a model.onnx")
    scale_model(tmp_path / "m.onnx", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        triton.write(exported.read("m.onnx"), tmp_path / "out")


def test_native_libraries_are_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scale_model(tmp_path / "m.onnx", 2)
    served = Served(file="model.onnx", provider=CPU, custom_ops=["custom_ops/lib.so"])
    monkeypatch.setattr(exported, "locate", lambda _: (path, {}, Serving({"cpu": served})))
    with pytest.raises(Refused, match=r"native libraries with custom operators \(custom_ops/lib\.so\)"):
        exported.read("m.onnx")


# KServe. The fields of InferenceService (serving.kserve.io/v1beta1) that the exports use, and their types.
PROBE = {"httpGet": {"path": str, "port": int}, "periodSeconds": int, "initialDelaySeconds": int}
RESOURCES = {"requests": {"cpu": str}, "limits": {"cpu": str}}
SCHEMA: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "namespace": str, "annotations": dict},
    "spec": {
        "predictor": {
            "model": {
                "modelFormat": {"name": str, "version": str},
                "runtime": str,
                "protocolVersion": str,
                "storageUri": str,
                "resources": RESOURCES,
            },
            "containers": [
                {
                    "name": str,
                    "image": str,
                    "args": [str],
                    "env": [{"name": str, "value": str}],
                    "envFrom": [{"secretRef": {"name": str}}],
                    "ports": [{"containerPort": int, "protocol": str}],
                    "readinessProbe": PROBE,
                    "livenessProbe": PROBE,
                    "resources": RESOURCES,
                    "securityContext": {
                        "runAsNonRoot": bool,
                        "readOnlyRootFilesystem": bool,
                        "allowPrivilegeEscalation": bool,
                        "capabilities": {"drop": [str]},
                    },
                    "volumeMounts": [{"name": str, "mountPath": str}],
                }
            ],
            "volumes": [{"name": str, "emptyDir": dict, "configMap": {"name": str}}],
        }
    },
}


def fits(value: Any, schema: Any, where: str = "") -> None:
    """Check that a document has only the fields of a schema, with their types."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for name, part in value.items():
            assert name in schema, f"{where}.{name}"
            fits(part, schema[name], f"{where}.{name}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for part in value:
            fits(part, schema[0], where)
    else:
        assert type(value) is schema, f"{where}: {value!r}"


def test_an_inference_service_runs_onward_or_triton(store: Store, tmp_path: Path, onward: Command) -> None:
    out = tmp_path / "cnn.yaml"
    image = ("--image", "registry.example:5000/onward@sha256:" + "0" * 64, "--tracking-uri", "http://mlflow:5000")
    code, *_ = onward(
        "export-kserve", "cnn@staging", *image, "--secret", "mlflow", "--params", "policy", "--out", str(out)
    )
    assert code == 0
    service = yaml.safe_load(out.read_text())
    fits(service, SCHEMA)
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["args"][:2] == ["serve", "cnn@staging"]
    assert {"name": "ONWARD_PARAMS", "value": "/etc/onward/params.yaml"} in container["env"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in service["spec"]["predictor"]["volumes"]}
    _, text, _ = onward("serve", "--help")
    assert all(argument in text for argument in container["args"] if argument.startswith("--"))
    code, text, _ = onward(
        "export-kserve", "cnn/2", "--storage-uri", "s3://models/cnn", "--out", str(out), "--namespace", "ml", "--json"
    )
    assert code == 0
    service = yaml.safe_load(out.read_text())
    assert service == json.loads(text)["service"]
    fits(service, SCHEMA)
    model = service["spec"]["predictor"]["model"]
    assert (model["protocolVersion"], model["storageUri"]) == ("v2", "s3://models/cnn")
    assert service["metadata"]["annotations"]["onward-version"] == "2"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--image", "a", "--storage-uri", "s3://x"),
        ("--image", "a b"),
        ("--image", "a", "--tracking-uri", "sqlite:///x.db"),
        ("--image", "a", "--tracking-uri", "http://ann:secret@mlflow"),
        ("--image", "a", "--tracking-uri", "http://m", "--secret", "My Secret"),
        ("--image", "a", "--tracking-uri", "http://m", "--name", "My_Model"),
        ("--image", "a", "--tracking-uri", "http://m", "--namespace", "a.b"),
        ("--storage-uri", "/models"),
        ("--storage-uri", "s3://user:password@models"),
        ("--storage-uri", "s3://models", "--secret", "s"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused(
    options: tuple[str, ...], store: Store, tmp_path: Path, onward: Command
) -> None:
    code, _, errors = onward("export-kserve", "cnn@staging", "--out", str(tmp_path / "x.yaml"), *options)
    assert code == 2
    assert "secret@" not in errors
    assert "password@" not in errors
    assert not (tmp_path / "x.yaml").exists()


def test_names_become_valid_and_stay_different() -> None:
    names = ["cnn", "My_Model", "3d", "a" * 60, "a" * 61, "x-", "_", "CNN-2"]
    made = [kserve.service_name(name) for name in names]
    assert made[:3] == ["cnn", "my-model", "model-3d"]
    assert all(kserve._NAME.fullmatch(name) and len(name) <= 53 for name in made), made
    assert len(set(made)) == len(names)


def test_processors_of_the_evidence_are_requested() -> None:
    made = kserve.with_triton(version(options=SessionOptions(threads=2)), "s3://models")
    fits(made, SCHEMA)
    assert made["spec"]["predictor"]["model"]["resources"]["limits"] == {"cpu": "2"}
