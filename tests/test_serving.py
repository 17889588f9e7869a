"""Serving: each provider has its file and session options, both in the worker and in the wrapper."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError

from onward.registry.artifact.manifest import MANIFEST, check_folder, content_digest
from onward.registry.artifact.serving_plan import MODEL, SERVING, Served, Serving
from onward.registry.errors import Refused, UsageError
from onward.registry.evidence.session_options import CPU, SessionOptions
from onward.registry.inference.session import InferenceSession, ProviderFallback
from onward.stages.workers import onnx_worker
from onward.stages.workers.worker import Worker
from tests.store_factory import scale_model, version_for_two_providers

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ALL = SessionOptions(
    threads=2,
    graph_level="basic",
    spinning=False,
    execution_mode="parallel",
    arena=False,
    memory_pattern=False,
    affinity="1",
)
ONE_BY_ONE = [SessionOptions(**{key: value}) for key, value in ALL.to_load().items() if key != "affinity"]


def seen(options: Any) -> dict[str, Any]:
    """All options in which two onnxruntime.SessionOptions can differ."""
    found = {
        name: getattr(options, name)
        for name in ("intra_op_num_threads", "graph_optimization_level", "execution_mode", "enable_cpu_mem_arena")
    }
    found["enable_mem_pattern"] = options.enable_mem_pattern
    for key in ("session.intra_op.allow_spinning", "session.intra_op_thread_affinities"):
        try:
            found[key] = options.get_session_config_entry(key)
        except RuntimeError:
            found[key] = None
    return found


@pytest.mark.parametrize("options", [SessionOptions(), *ONE_BY_ONE, ALL], ids=str)
def test_the_worker_and_the_wrapper_translate_session_options_equally(options: SessionOptions) -> None:
    assert seen(options.to_onnxruntime()) == seen(onnx_worker.session_options(**options.to_load()))
    assert options == SessionOptions() or seen(options.to_onnxruntime()) != seen(onnxruntime.SessionOptions())


@pytest.mark.parametrize("options", [SessionOptions(), SessionOptions(tf32=True), SessionOptions(nhwc=True)], ids=str)
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_the_worker_and_the_wrapper_pass_the_same_options_to_a_provider(provider: str, options: SessionOptions) -> None:
    assert options.to_provider(provider) == onnx_worker.provider_of(provider, options.tf32, options.nhwc)


def test_float32_stays_float32_on_cuda_unless_a_variant_overrides_it() -> None:
    assert SessionOptions().to_provider("CUDAExecutionProvider") == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert SessionOptions(tf32=True).to_provider("CUDAExecutionProvider")[1] == {"use_tf32": "1"}


def test_empty_options_use_the_defaults_of_onnx_runtime() -> None:
    assert seen(SessionOptions().to_onnxruntime()) == seen(onnxruntime.SessionOptions())
    assert SessionOptions().to_load() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "greater than or equal to 1"),
        ({"graph_level": "most"}, "'disabled', 'basic', 'extended' or 'all'"),
        ({"affinity": "all", "threads": 2}, "groups of processors"),
        ({"affinity": "1"}, "set threads to 2"),
        ({"affinity": "1;2", "threads": 2}, "set threads to 3"),
        ({"spining": False}, "Extra inputs"),
    ],
)
def test_options_that_onnx_runtime_would_reject_are_rejected_earlier(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SessionOptions.model_validate(given)


def test_a_worker_runs_with_every_option(tmp_path: Path) -> None:
    with Worker.onnx(scale_model(tmp_path / "m.onnx", 3), "m", options=ALL) as started:
        assert np.array_equal(started.run({"x": X})["y"], 3 * X)
        assert started.profile({"x": X}) == {CPU: 1}


def test_options_that_exceed_this_machine_are_left_to_onnx_runtime() -> None:
    many = len(os.sched_getaffinity(0)) + 1
    groups = ";".join(["1"] * (many - 1))
    assert SessionOptions(threads=many, arena=False, affinity=groups).fitting_here() == SessionOptions(arena=False)
    assert SessionOptions(threads=2, affinity="5000").fitting_here().affinity is None
    assert SessionOptions(threads=1, spinning=False).fitting_here() == SessionOptions(threads=1, spinning=False)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return version_for_two_providers(tmp_path)


def test_a_version_includes_the_files_of_every_provider(version: Path) -> None:
    files = check_folder(version)
    assert [file.path for file in files] == ["model.onnx", "providers/openvino/model.onnx"]
    digest = content_digest(files)
    assert InferenceSession(version).metadata.sha256 == digest
    assert check_folder(version, digest) == files
    other = version / "providers" / "openvino" / MODEL
    other.write_bytes(other.read_bytes() + b"\0")
    with pytest.raises(Refused, match=r"providers/openvino/model\.onnx has changed"):
        InferenceSession(version)


def test_a_session_serves_the_winner_of_the_available_provider(version: Path) -> None:
    session = InferenceSession(version)
    assert np.array_equal(session.predict(X), 2 * X)
    served = session.metadata.served
    assert served is not None
    assert served.options == SessionOptions(threads=1, spinning=False)
    used = session._loaded._session.get_session_options()
    assert (used.intra_op_num_threads, used.get_session_config_entry("session.intra_op.allow_spinning")) == (1, "0")


def test_the_mlflow_flavor_serves_with_the_same_options(version: Path) -> None:
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(version))
    used = loaded._model_impl.rt.get_session_options()
    assert (used.intra_op_num_threads, used.get_session_config_entry("session.intra_op.allow_spinning")) == (1, "0")


def test_session_options_of_the_caller_take_precedence(version: Path) -> None:
    own = onnxruntime.SessionOptions()
    own.intra_op_num_threads = 2
    session = InferenceSession(version, session_options=own)
    assert session._loaded._session.get_session_options().intra_op_num_threads == 2


def test_a_given_file_is_served_unchanged(version: Path) -> None:
    session = InferenceSession(version / "providers" / "openvino" / MODEL)
    assert np.array_equal(session.predict(X), 3 * X)
    assert session.metadata.served is None


def test_a_version_measured_on_no_provider_of_this_host_reports_it(version: Path) -> None:
    (version / MANIFEST).unlink()
    said = json.loads((version / SERVING).read_text())
    del said["cpu"]
    (version / SERVING).write_text(json.dumps(said))
    with pytest.warns(ProviderFallback, match="OpenVINOExecutionProvider cannot be used here"):
        assert np.array_equal(InferenceSession(version).predict(X), 2 * X)
    with pytest.raises(UsageError, match=r"onward\[openvino\]"):
        InferenceSession(version, strict_providers=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"cpu": {"file": "../model.onnx", "provider": "p"}}', "cpu.file"),
        ('{"cpu": {"file": "model.onnx", "provider": "p", "options": {"threads": -1}}}', "cpu.options.threads"),
    ],
)
def test_an_invalid_serving_json_is_rejected(version: Path, text: str, message: str) -> None:
    (version / MANIFEST).unlink()
    (version / SERVING).write_text(text)
    with pytest.raises(Refused, match=rf"serving.json cannot be read: .*{message}"):
        InferenceSession(version)


def test_a_serving_json_must_name_existing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx, which the folder does not contain"):
        Serving({"cpu": Served(file=MODEL, provider=CPU)}).save(tmp_path)
