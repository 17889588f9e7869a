"""Registered versions can be served: publish loads the folder as a service would before registering it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onward.registry.artifact.manifest import check_folder
from onward.registry.artifact.replay import Recorded
from onward.registry.errors import UsageError
from onward.registry.inference import servable
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import overview, promotion
from onward.registry.store.store import Store
from onward.registry.tracking.recorder import publish
from tests.evidence_factory import make_publication
from tests.test_external_data import scaled

ZEROS = np.zeros((4, 4), np.float32)


def model(
    path: Path, nodes: list[NodeProto], outputs: Any = ("batch", 4), inputs: Any = ("batch", 4), **weights: Any
) -> Path:
    """A graph from x float32[batch, 4] to y with these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def aborting(path: Path) -> Path:
    """A model that crashes the process: an LSTM over an empty batch."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "zero", "zero"], ["none"]),
        helper.make_node("Unsqueeze", ["none", "zero"], ["steps"]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["y"], hidden_size=2),
    ]
    w, r = np.ones((1, 8, 4), np.float32), np.ones((1, 8, 2), np.float32)
    return model(path, nodes, (1, 1, None, 2), zero=np.array([0], np.int64), w=w, r=r)


def unknown(path: Path) -> Path:
    return model(path, [helper.make_node("Strange", ["x"], ["y"], domain="elsewhere")])


def relu(path: Path, dims: Any = ("batch", 4)) -> Path:
    return model(path, [helper.make_node("Relu", ["x"], ["y"])], dims, dims)


BROKEN = {
    "cannot be loaded": (unknown, ZEROS, r"loading it: .*ONNX Runtime cannot load the model"),
    "aborts": (aborting, ZEROS, r"predict with the recorded inputs: the runtime died of SIG"),
    "other answers": (relu, ZEROS + 1, r"predict with the recorded inputs: output y is off by up to"),
    "another shape": (relu, ZEROS[:, :2], r"output y has shape \[4, 4\], but \[4, 2\] was recorded"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_cannot_be_served_fails_and_is_not_registered(store_uri: str, tmp_path: Path, kind: str) -> None:
    make, answers, reason = BROKEN[kind]
    publication = make_publication(tmp_path, chosen=make(tmp_path / "chosen.onnx"), answers=answers)
    report = publish(publication)
    client = MlflowClient(store_uri, store_uri)
    assert (report.status, report.version, report.sha256) == ("failed", None, "")
    assert re.search(reason, report.reason), report.reason
    assert report.reason.startswith("nothing registered: publish: the version cannot be served: ")
    run = client.get_run(report.run_id)
    assert (run.info.status, run.data.tags["onward.status"]) == ("FAILED", "failed")
    assert run.data.tags["onward.reason"] == report.reason
    assert list(client.search_registered_models()) == []
    models = client.search_logged_models([run.info.experiment_id])
    assert [(found.name, str(found.status)) for found in models] == [("toy-plain", "READY")]
    assert publish(publication) == report
    assert len(client.search_runs([run.info.experiment_id])) == 4


def test_a_fault_of_the_stage_is_recorded(store_uri: str, tmp_path: Path) -> None:
    report = publish(dataclasses.replace(make_publication(tmp_path), fault="fast of toy: aborted", bundle=None))
    assert (report.status, report.version) == ("failed", None)
    assert report.reason == "nothing registered: publish: the version cannot be served: fast of toy: aborted"


def test_a_repaired_model_is_a_new_publication_and_is_registered(store_uri: str, tmp_path: Path) -> None:
    chosen = relu(tmp_path / "chosen.onnx")
    refused = publish(make_publication(tmp_path, chosen=chosen, answers=ZEROS + 1))
    registered = publish(make_publication(tmp_path, chosen=chosen))
    assert (refused.status, registered.status, registered.version) == ("failed", "passed", 1)
    assert refused.run_id != registered.run_id


@pytest.mark.parametrize("locations", [["model.onnx_data"], ["data/a", "data/b"]], ids=["Optimum", "a subfolder"])
def test_a_version_with_any_external_data_name_can_be_promoted_checked_and_loaded(
    store_uri: str, tmp_path: Path, locations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("environments: {staging: {from: candidate, require: [parity, replay]}}\n")
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONWARD_PARAMS", str(tmp_path / "params.yaml"))
    report = publish(make_publication(tmp_path, chosen=scaled(tmp_path / "chosen", locations)))
    assert report.version == 1, report.reason
    outcome = promotion.promote("toy", "staging", 1, reason="test")
    assert outcome.sha256 == report.sha256
    assert overview.check("toy", "staging", Store()).met
    for target in ("toy/1", "toy@staging"):
        session = InferenceSession(target)
        assert session.metadata.sha256 == report.sha256
        assert session.predict(np.ones((1, 4), np.float32))[0, 0] == 3.0


def mixing(path: Path, how: str) -> Path:
    """Models whose outputs for some samples differ from the same samples in a larger batch."""
    if how == "one answer for all samples":
        return model(path, [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)], (4,))
    if how == "samples depend on those before":
        return model(path, [helper.make_node("CumSum", ["x", "axis"], ["y"])], axis=np.int64(0))
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0])
    return model(path, [mean, helper.make_node("Sub", ["x", "mean"], ["y"])])


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("one answer for all samples", "output y does not have one row per sample"),
        ("samples depend on those before", "differ from the answers to all inputs at once: output y is off by up to"),
        ("samples depend on each other", "differ from the answers to all inputs at once: output y is off by up to"),
    ],
)
def test_a_model_without_per_sample_outputs_is_registered_with_a_note(
    store_uri: str, tmp_path: Path, how: str, why: str
) -> None:
    report = publish(make_publication(tmp_path, chosen=mixing(tmp_path / "chosen.onnx", how)))
    assert (report.status, report.version) == ("passed", 1)
    assert [why in finding for finding in report.findings] == [True]
    tags = MlflowClient(store_uri, store_uri).get_model_version("toy", "1").tags
    assert tags["batches"].startswith("no: ")
    session = InferenceSession("toy/1")
    x = np.ones((4, 4), np.float32)
    session.predict(x)
    with pytest.raises(UsageError, match=r"predict_batches cannot be used with this version: .*; call predict"):
        session.predict_batches(x)


def test_a_version_supports_batches_by_default(store_uri: str, tmp_path: Path) -> None:
    report = publish(make_publication(tmp_path))
    assert report.findings == []
    assert "batches" not in MlflowClient(store_uri, store_uri).get_model_version("toy", "1").tags
    assert InferenceSession("toy/1").predict_batches(np.ones((9, 4), np.float32), 4).shape == (9, 3)


def prepared(tmp_path: Path, **recorded: Any) -> tuple[Path, str]:
    """The folder of a version, and its sha256."""
    from onward.registry.tracking.version_folder import prepare

    publication = make_publication(tmp_path)
    assert publication.bundle is not None
    if recorded:
        Recorded(**recorded).save(publication.bundle.parent)
    version = prepare(publication, tmp_path / "version")
    return version.folder, version.sha256


def test_a_model_that_an_environment_would_reject_is_rejected_earlier(tmp_path: Path) -> None:
    folder, sha256 = prepared(tmp_path)
    assert servable.examined(folder, sha256, "") == servable.Servable()
    wrong = servable.examined(folder, "0" * 64, "")
    assert wrong.fault.startswith("the integrity check: the model has sha256 ")
    (folder / "validation" / "inputs.npz").unlink()
    assert servable.examined(folder, sha256, "").fault.startswith("the integrity check: the files are not those")


def test_a_check_that_hangs_is_a_fault(tmp_path: Path) -> None:
    folder, sha256 = prepared(tmp_path)
    assert servable.examine(folder, sha256, timeout_s=0.01).fault == "did not finish within 0.01 s"


def test_the_folder_is_valid_after_batches_are_marked_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sha256 = prepared(tmp_path)
    monkeypatch.setattr(servable, "ask", lambda *_, **__: {"fault": "", "batches": "of a reason"})
    servable.examine(folder, sha256)
    check_folder(folder, sha256)
    assert Recorded.load(folder).batches == "of a reason"
