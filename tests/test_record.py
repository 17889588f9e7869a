"""Publishing registers the measured bytes, and repeated or interrupted publishing changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from onward.registry.artifact.manifest import check_folder, content_digest
from onward.registry.artifact.serving_plan import Serving
from onward.registry.errors import StoreUnreachable, UsageError
from onward.registry.evidence.records import FileDigest, Machine, Winner
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import promotion
from onward.registry.tracking.recorder import Publication, publish, store_identity
from onward.registry.uri import without_credentials
from tests.conftest import ROOT, not_none
from tests.evidence_factory import make_publication
from tests.onnx_models import linear


def contents(uri: str) -> dict[str, Any]:
    """Everything that publishing creates, in comparable form."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    models = client.search_logged_models([experiment.experiment_id])
    return {
        "runs": sorted((r.info.run_name, r.info.status, tuple(sorted(r.data.metrics.items()))) for r in runs),
        "artifacts": sorted(
            a.path for r in runs for folder in ("", "reports") for a in client.list_artifacts(r.info.run_id, folder)
        ),
        "models": sorted((m.name, str(m.status)) for m in models),
        "versions": sorted((v.name, v.version, v.tags["sha256"]) for v in client.search_model_versions()),
    }


def test_a_publication_creates_a_parent_run_a_child_run_per_variant_and_one_version(
    store_uri: str, tmp_path: Path
) -> None:
    report = publish(make_publication(tmp_path))
    client = MlflowClient(store_uri, store_uri)
    parent = client.get_run(report.run_id)
    assert parent.info.status == "FINISHED"
    assert set(report.variants) == {"reference", "plain", "fast"}
    assert parent.data.metrics["latency/b1_p50_ms"] == pytest.approx(0.8)
    assert parent.data.metrics["parity/y_max_abs"] == pytest.approx(1e-7)
    assert parent.data.metrics["quality"] == 0.9
    assert parent.data.params["opset"] == "17"
    assert parent.data.params["export.opset"] == "17"
    assert parent.data.tags["git_commit"] == "0" * 40
    assert {"reports", "validation"} <= {item.path for item in client.list_artifacts(report.run_id)}
    child = client.get_run(report.variants["fast"])
    assert (child.info.status, child.data.tags["onward.reason"]) == ("FINISHED", "the fastest")
    assert child.data.tags["mlflow.parentRunId"] == report.run_id
    assert "latency/b1_p99_ms" not in parent.data.metrics


def test_a_version_contains_the_measured_bytes(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    publication = make_publication(tmp_path)
    report = publish(publication)
    measured = tmp_path / publication.evidence.select.files[0].path
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/toy/1", dst_path=str(tmp_path / "got")))
    assert (folder / "model.onnx").read_bytes() == measured.read_bytes()
    assert report.sha256 == content_digest(publication.evidence.select.files)
    check_folder(folder, report.sha256)


def test_mlflow_itself_loads_and_serves_a_version(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    publish(make_publication(tmp_path))
    x = np.ones((2, 4), np.float32)
    model = mlflow.pyfunc.load_model("models:/toy/1")
    assert model.metadata.signature is not None
    answer = model.predict({"x": x})["y"]
    assert np.allclose(answer, np.maximum(x @ np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), 0))
    assert mlflow.onnx.load_model("models:/toy/1").graph.name == "linear"


def test_publishing_again_adds_nothing(store_uri: str, tmp_path: Path) -> None:
    first = publish(make_publication(tmp_path))
    before = contents(store_uri)
    assert publish(make_publication(tmp_path)) == first
    assert contents(store_uri) == before


def test_measuring_equal_bytes_again_adds_a_run_and_no_version(store_uri: str, tmp_path: Path) -> None:
    first = publish(make_publication(tmp_path))
    second = publish(make_publication(tmp_path, p50=2.0))
    assert first.run_id != second.run_id
    assert (first.version, second.version) == (1, 1)
    assert MlflowClient(store_uri, store_uri).get_model_version("toy", "1").tags["run_id"] == second.run_id


def with_threads(publication: Publication, threads: int) -> Publication:
    select = publication.evidence.select
    select.winners = [select.winners[0].model_copy(update={"options": SessionOptions(threads=threads)})]
    return publication


def test_equal_bytes_with_other_serving_options_are_another_version(store_uri: str, tmp_path: Path) -> None:
    versions = [
        publish(with_threads(make_publication(tmp_path, p50=p50), threads)).version
        for threads, p50 in ((1, 1.0), (2, 2.0), (1, 3.0), (2, 4.0))
    ]
    assert versions == [1, 2, 1, 2]
    client = MlflowClient(store_uri, store_uri)
    first, second = (client.get_model_version("toy", version) for version in ("1", "2"))
    assert first.tags["sha256"] == second.tags["sha256"]
    assert first.tags["serving"] != second.tags["serving"]
    for number, threads in ((1, 1), (2, 2)):
        assert not_none(InferenceSession(f"toy/{number}").metadata.served).options.threads == threads


def test_versions_with_equal_bytes_are_deployed_with_their_own_options(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("environments: {staging: {from: candidate, require: []}}\n")
    for threads in (1, 2):
        publish(with_threads(make_publication(tmp_path, p50=float(threads)), threads))
    session = None
    for version in (1, 2, 1):
        assert promotion.promote("toy", "staging", version, reason="x").changed
        session = session or InferenceSession("toy@staging")
        session.refresh()
        assert session.metadata.served is not None
        assert session.metadata.served.options.threads == version
    assert not promotion.promote("toy", "staging", 1, reason="x").changed
    assert promotion.rollback("toy", "staging", reason="x").version == 2
    assert not_none(InferenceSession("toy@staging").metadata.served).options.threads == 2


def test_a_version_of_an_older_onward_is_identified_by_its_files(store_uri: str, tmp_path: Path) -> None:
    publish(with_threads(make_publication(tmp_path), 1))
    client = MlflowClient(store_uri, store_uri)
    client.delete_model_version_tag("toy", "1", "serving")
    assert publish(with_threads(make_publication(tmp_path, p50=2.0), 1)).version == 1
    assert "serving" in client.get_model_version("toy", "1").tags
    client.delete_model_version_tag("toy", "1", "serving")
    assert publish(with_threads(make_publication(tmp_path, p50=3.0), 2)).version == 2


def test_a_version_lists_every_host_kind_it_was_measured_on(store_uri: str, tmp_path: Path) -> None:
    for sets in (["avx2"], ["avx2", "avx512_vnni"], ["avx2"]):
        publication = make_publication(tmp_path, p50=float(len(sets)))
        publication.evidence.benchmark.machine = Machine(
            cpu="a CPU", instruction_sets=sets, cores=2, memory_gb=8, system="Linux x86_64"
        )
        assert publish(publication).version == 1
    tags = MlflowClient(store_uri, store_uri).get_model_version("toy", "1").tags
    assert (tags["cpu"], tags["instruction_sets"]) == ("a CPU", "avx2; avx2 avx512_vnni")


def test_other_bytes_are_another_version(store_uri: str, tmp_path: Path) -> None:
    assert [publish(make_publication(tmp_path, scale=scale)).version for scale in (1.0, 2.0, 1.0)] == [1, 2, 1]


def test_a_failure_is_a_failed_run_with_its_reason_and_no_version(store_uri: str, tmp_path: Path) -> None:
    report = publish(make_publication(tmp_path, failed="a branch depends on input values"))
    run = MlflowClient(store_uri, store_uri).get_run(report.run_id)
    assert report.version is None
    assert report.reason == "nothing registered: export: a branch depends on input values"
    assert run.info.status == "FAILED"
    assert "a branch depends on input values" in run.data.tags["onward.reason"]
    assert contents(store_uri)["versions"] == []


STEPS = [
    "create_run",
    "log_batch",
    "log_model_artifacts",
    "finalize_logged_model",
    "create_model_version",
    "log_artifact",
    "set_terminated",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_publishing_again_after_a_kill_gives_the_undisturbed_result(
    store_uri: str, tmp_path: Path, step: str, when: str, empty_database: Path
) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        from mlflow import MlflowClient
        from onward.registry.tracking.recorder import publish
        from tests.evidence_factory import ENDED, STARTED, make_publication
        original, count = MlflowClient.{step}, [0]
        def killing(*a, **k):
            count[0] += 1
            if count[0] == 2 or {step!r} == "create_model_version":
                if {when!r} == "after":
                    original(*a, **k)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*a, **k)
        MlflowClient.{step} = killing
        publish(make_publication(Path({str(tmp_path)!r})))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "MLFLOW_TRACKING_URI": store_uri}
    )
    assert done.returncode == -signal.SIGKILL
    interrupted = contents(store_uri)
    assert not any(name.startswith("toy · 2026") and status == "FINISHED" for name, status, _ in interrupted["runs"])
    publish(make_publication(tmp_path))
    resumed = contents(store_uri)
    assert all(status in ("FINISHED", "FAILED") for _, status, _ in resumed["runs"])
    assert len(resumed["runs"]) == 4
    assert [name for name, _ in resumed["models"]] == ["toy-fast", "toy-plain"]
    assert [(name, int(version)) for name, version, _ in resumed["versions"]] == [("toy", 1)]


def test_a_new_or_emptied_store_has_another_identity_and_no_credential(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    first = store_identity("tests")
    assert store_identity("tests") == first
    assert str(tmp_path) not in str(first)
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    assert store_identity("tests") != first
    assert without_credentials("https://user:secret@host:5000/path?token=x") == "https://host:5000/path"
    assert "secret" not in without_credentials("postgresql://user:secret@host/db")


def test_an_unreachable_server_is_reported_within_seconds_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnreachable) as caught:
        publish(make_publication(tmp_path))
    assert caught.value.exit_code == 4
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_reported(store_uri: str, tmp_path: Path) -> None:
    identity = store_identity("tests")
    MlflowClient(store_uri, store_uri).delete_experiment(identity["experiment_id"])
    with pytest.raises(UsageError, match="was deleted: restore it"):
        publish(make_publication(tmp_path))


def test_a_non_finite_metric_is_omitted_and_named(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    publication.evidence.benchmark.measurements[1].quality = float("nan")
    report = publish(publication)
    run = MlflowClient(store_uri, store_uri).get_run(report.variants["fast"])
    assert "quality" not in run.data.metrics
    assert run.data.tags["onward.not_finite"] == "quality"


def test_a_version_contains_the_winner_of_every_runtime_and_its_serving_options(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    publication = make_publication(tmp_path)
    select = publication.evidence.select
    (tmp_path / "theirs").mkdir()
    theirs = [FileDigest.of(linear(tmp_path / "theirs" / "graph.onnx", scale=3.0), tmp_path)]
    here = select.winners[0].model_copy(update={"options": SessionOptions(threads=1, spinning=False)})
    there = Winner(variant="plain", runtime="openvino", provider="OpenVINOExecutionProvider", files=theirs, p50_ms=0.5)
    select.winners = [here, there]
    report = publish(publication)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/toy/1", dst_path=str(tmp_path / "got")))
    check_folder(folder, report.sha256)
    assert report.sha256 == content_digest([*select.files, *theirs])
    assert (folder / "providers/openvino/model.onnx").read_bytes() == (tmp_path / theirs[0].path).read_bytes()
    serving = Serving.load(folder)
    assert serving is not None
    assert list(serving.root) == ["openvino", "cpu"]  # the faster first
    assert serving.root["cpu"].options == here.options
    tags = MlflowClient(store_uri, store_uri).get_model_version("toy", "1").tags
    assert tags["runtimes"] == "cpu openvino"


def test_an_experiment_is_recorded_apart_and_registers_only_if_asked(store_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(store_uri, store_uri)
    named = replace(make_publication(tmp_path), dvc_experiment="swift-lake")
    tried = publish(replace(named, registers=False))
    assert (tried.status, tried.version) == ("passed", None)
    assert "swift-lake is a DVC experiment" in tried.findings[0]
    assert not client.search_registered_models()
    ordinary = publish(make_publication(tmp_path))
    assert ordinary.version == 1
    assert ordinary.run_id != tried.run_id
    assert publish(replace(named, registers=True)).version == 1
