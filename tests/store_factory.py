"""A real MLflow store for a test, with candidate versions as the pipeline would register them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact.manifest import content_digest, manifest_digest
from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.onnx_file import digests
from onward.registry.artifact.serving_plan import MODEL, Served, Serving
from onward.registry.evidence.records import TensorSpec
from onward.registry.evidence.session_options import CPU, SessionOptions
from onward.registry.operations import promotion
from onward.registry.store.connection import as_default, connect, ensure_experiment
from onward.registry.store.store import Store

GOOD = {
    "variant": "int8-dynamic",
    "runtime": "cpu",
    "provider": "CPUExecutionProvider",
    "precision": "int8",
    "opset": "20",
    "verdict": "passed",
    "parity": "passed",
    "data": "passed",
    "quality": "0.98",
    "quality_drop": "0.002",
    "quality_budget": "0.005",
    "latency_ratio": "0.71",
    "size_mb": "0.001",
}


@functools.cache
def _empty_database() -> Path:
    """An empty store, migrated once: a migration takes seconds, a copy is fast."""
    folder = Path(tempfile.mkdtemp(prefix="onward-test-"))
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        connect().search_registered_models()
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before
    return folder / "mlflow.db"


def fresh_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty SQLite store in `tmp_path`, which becomes the working directory; the actor is ann."""
    shutil.copyfile(_empty_database(), tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ONWARD_ACTOR", "ann")
    monkeypatch.chdir(tmp_path)
    return Store()


def scale_model(path: Path, factor: float) -> Path:
    """Write a model y = factor * x for float32[batch, 4]."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.array([factor], np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"onward.inputs": json.dumps({"x": {"about": "four numbers"}})})
    onnx.save(model, path)
    return path


def add_candidate(
    store: Store, model: str, factor: float = 1.0, recorded_factor: float | None = None, **tags: str | None
) -> int:
    """Register a version of `model` that computes factor * x, and return its number.

    `recorded_factor` is the factor of its recorded outputs. Tags of None are omitted.
    """
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        file = scale_model(here / "model.onnx", factor)
        bundle = here / "bundle"
        bundle.mkdir()
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        np.savez(bundle / "inputs.npz", x=x)
        np.savez(bundle / "outputs.npz", y=x * np.float32(factor if recorded_factor is None else recorded_factor))
        (bundle / "tolerance.json").write_text('{"rtol": 1e-3, "atol": 1e-5}')
        specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in ("x", "y")]
        build_folder(here / "model", [file], specs[:1], specs[1:], "CPUExecutionProvider", bundle)
        return register_folder(store, model, here / "model", **tags)


def register_folder(store: Store, model: str, folder: Path, **tags: str | None) -> int:
    """Register the folder of a version, and return its number. Tags of None are omitted."""
    client = store._client
    experiment = ensure_experiment(client, "onward")
    manifest = manifest_digest(folder)
    sha256 = content_digest(digests(folder / MODEL))
    run = client.create_run(experiment)
    logged = client.create_logged_model(experiment, name=f"{model}-chosen", source_run_id=run.info.run_id)
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    if not any(registered.name == model for registered in client.search_registered_models(f"name = '{model}'")):
        client.create_registered_model(model)
    known = {**GOOD, "sha256": sha256, "manifest": manifest, "run_id": run.info.run_id, **tags}
    with as_default(client):
        version = client.create_model_version(
            model,
            source=f"models:/{logged.model_id}",
            run_id=run.info.run_id,
            model_id=logged.model_id,
            tags={key: value for key, value in known.items() if value is not None},
        )
    return int(version.version)


def artifacts_of(store: Store, model: str, version: int) -> Path:
    """The folder of a version in the embedded store."""
    uri = store._client.get_model_version_download_uri(model, str(version))
    return Path(uri.removeprefix("file://"))


def version_for_two_providers(folder: Path) -> Path:
    """The folder of a version that doubles on the CPU and triples on OpenVINO, its preferred provider."""
    specs = [TensorSpec(name=name, dtype="float32", shape=["batch", 4]) for name in ("x", "y")]
    serving = Serving(
        {
            "openvino": Served(file="providers/openvino/model.onnx", provider="OpenVINOExecutionProvider"),
            "cpu": Served(file=MODEL, provider=CPU, options=SessionOptions(threads=1, spinning=False)),
        }
    )
    files = [scale_model(folder / "cpu.onnx", 2)]
    others = {"openvino": [scale_model(folder / "openvino.onnx", 3)]}
    build_folder(folder / "version", files, specs[:1], specs[1:], CPU, serving=serving, others=others)
    return folder / "version"


def three_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with three versions of cnn; version n multiplies by n. Version 1 is live in staging."""
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor)
    stage(store, 1)
    return store


def stage(store: Store, version: int) -> None:
    """Promote a version of cnn to staging."""
    promotion.promote("cnn", "staging", version, reason="because", store=store)
