"""What people see in MLflow: runs, metrics, datasets, logged models, cards and descriptions."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from onward.registry.evidence.metric_names import HEADLINE
from onward.registry.evidence.records import CaseResult, Machine
from onward.registry.tracking.recorder import NOT_MEASURED, publish
from tests.conftest import not_none
from tests.evidence_factory import ENDED, STARTED, make_publication


def test_variants_that_were_not_measured_are_rows_of_one_table(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    plain = publication.evidence.benchmark.measurements[0]
    screened = plain.model_copy(
        update={"variant": "slow", "status": "not attempted", "reason": "left after rung 1", "latencies": []}
    )
    publication.evidence.benchmark.measurements.append(screened)
    report = publish(publication)
    client = MlflowClient(store_uri, store_uri)
    assert "slow" not in report.variants
    table = client.load_table(
        not_none(client.get_experiment_by_name("tests")).experiment_id, NOT_MEASURED, run_ids=[report.run_id]
    )
    assert list(table["variant"]) == ["odd", "slow"]
    assert list(table["status"]) == ["failed", "not attempted"]
    assert list(table["reason"]) == ["differs by 3", "left after rung 1"]
    assert table["latency_ratio"][1] == pytest.approx(1.0)
    assert "differs by 3" in client.get_run(report.run_id).data.tags["mlflow.note.content"]
    names = {model.name for model in client.search_logged_models([client.get_run(report.run_id).info.experiment_id])}
    assert names == {"toy-plain", "toy-fast"}


def test_a_failed_variant_is_a_failed_run(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    wrong = publication.evidence.benchmark.measurements[0].model_copy(
        update={"variant": "wrong", "status": "failed", "reason": "NaN", "latencies": []}
    )
    publication.evidence.benchmark.measurements.append(wrong)
    report = publish(publication)
    child = MlflowClient(store_uri, store_uri).get_run(report.variants["wrong"])
    assert (child.info.status, child.data.tags["onward.reason"]) == ("FAILED", "NaN")


def test_runs_have_a_telling_name_the_time_of_the_measurement_and_an_origin(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    publication.evidence.benchmark.machine = Machine(
        cpu="a CPU", instruction_sets=["avx2", "avx512_vnni"], cores=2, memory_gb=8, system="Linux x86_64"
    )
    report = publish(publication)
    again = publish(make_publication(tmp_path, p50=2.0))
    client = MlflowClient(store_uri, store_uri)
    run = client.get_run(report.run_id)
    assert run.info.run_name == "toy · 2026-11-27 03:00 · avx512_vnni"
    assert client.get_run(again.run_id).info.run_name != run.info.run_name
    for run_id in (report.run_id, report.variants["fast"]):
        run = client.get_run(run_id)
        started, ended = (datetime.fromisoformat(text).timestamp() * 1000 for text in (STARTED, ENDED))
        assert (run.info.start_time, run.info.end_time) == (started, ended)
        assert run.data.tags["mlflow.user"] == "tester"
        assert run.data.tags["mlflow.source.name"] == "dvc.yaml"
        assert run.data.tags["mlflow.source.git.commit"] == "0" * 40
        assert {found.dataset.name: found.tags[0].value for found in not_none(run.inputs).dataset_inputs} == {
            "toy-calibration": "calibration",
            "toy-evaluation": "evaluation",
        }
    tags = client.get_run(report.variants["fast"]).data.tags
    assert (tags["onward.chosen"], tags["onward.optimizer"], tags["onward.runtime"]) == ("true", "fast", "cpu")
    assert client.get_run(report.variants["plain"]).data.tags["onward.chosen"] == "false"


def test_equal_measurements_judged_by_other_settings_have_different_names(store_uri: str, tmp_path: Path) -> None:
    names = []
    for budget in (1, 2, 2):
        publication = replace(make_publication(tmp_path), params={"budget": {"latency_ms": budget}})
        run = MlflowClient(store_uri, store_uri).get_run(publish(publication).run_id)
        names.append(run.info.run_name)
    assert names[1] == names[2] == f"{names[0]} · 2"


def test_every_variant_has_the_same_headline_metrics(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    for measurement in publication.evidence.benchmark.measurements:
        measurement.snr_db = float("inf")
    report = publish(publication)
    client = MlflowClient(store_uri, store_uri)
    for run_id in (report.run_id, report.variants["plain"], report.variants["fast"]):
        metrics = client.get_run(run_id).data.metrics
        assert set(HEADLINE) <= metrics.keys()
        assert metrics["fidelity_snr_db"] == 200
        assert {name for name in metrics if "/" not in name} == set(HEADLINE)
    assert metrics["speedup"] == pytest.approx(1 / 0.8)
    assert metrics["p50_ms"] == pytest.approx(0.8)
    history = client.get_metric_history(report.variants["fast"], "by_batch/p50_ms")
    assert [point.step for point in history] == [1]
    assert history[0].value == pytest.approx(0.8)


def test_a_logged_model_has_metrics_data_an_example_and_links(store_uri: str, tmp_path: Path) -> None:
    report = publish(replace(make_publication(tmp_path), example={"x": np.ones((1, 4), np.float32)}))
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_run(report.run_id).info.experiment_id
    models = {model.name: model for model in client.search_logged_models([experiment])}
    chosen = models["toy-fast"]
    metrics = {metric.key: metric for metric in not_none(chosen.metrics)}
    assert set(HEADLINE) - {"fidelity_snr_db"} <= metrics.keys()
    assert (metrics["quality"].dataset_name, metrics["quality"].run_id) == ("toy-evaluation", report.variants["fast"])
    assert json.loads(chosen.tags["mlflow.modelVersions"]) == [{"name": "toy", "version": 1}]
    assert f"#/experiments/{experiment}/runs/{report.variants['fast']}" in chosen.tags["mlflow.note.content"]
    assert "mlflow.modelVersions" not in models["toy-plain"].tags
    for model in models.values():
        import mlflow

        found = mlflow.models.get_model_info(f"models:/{model.model_id}")
        assert found.signature is not None
        assert not_none(found.saved_input_example_info)["artifact_path"] == "input_example.json"
    again = publish(make_publication(tmp_path, p50=2.0))  # the same bytes: another logged model of the same version
    linked = [model for model in client.search_logged_models([experiment]) if "mlflow.modelVersions" in model.tags]
    assert (again.version, len(linked)) == (1, 2)


def test_pages_lead_from_the_experiment_to_runs_versions_and_comparisons(store_uri: str, tmp_path: Path) -> None:
    report = publish(make_publication(tmp_path))
    failed = publish(make_publication(tmp_path, model="bad", failed="a | branch <b>depends</b>"))
    client = MlflowClient(store_uri, store_uri)
    experiment = not_none(client.get_experiment_by_name("tests"))
    note, number = experiment.tags["mlflow.note.content"], experiment.experiment_id
    assert f"[toy](#/experiments/{number}/runs/{report.run_id}) | passed | fast" in note
    assert "[version 1](#/models/toy/versions/1)" in note
    assert f"[bad](#/experiments/{number}/runs/{failed.run_id}) | failed" in note
    assert r"a \| branch &lt;b>depends&lt;/b>" in note
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    for key in re.findall(r"viewStateShareKey=([\w-]+)", note):
        state = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        assert "metrics.`p50_ms`" in state["selectedColumns"]
        assert state["compareRunCharts"][0]["type"] == "SCATTER"
    state = json.loads(experiment.tags["mlflow.sharedViewState.onward-variants-toy"])
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{report.run_id}'"
    assert "version 1" in not_none(client.get_registered_model("toy").description)


def test_a_version_has_a_model_card_that_follows_the_newest_evidence(store_uri: str, tmp_path: Path) -> None:
    import mlflow

    about = {"license": "apache-2.0", "contact": "team <a@b.c>", "preprocessing": "divide by 255"}
    params = {"card": about, "dims": {"batch": {"min": 1, "max": 8}}, "quality": "models.toy:accuracy"}
    publication = replace(make_publication(tmp_path), params=params)
    probe = CaseResult(case="empty@b0", seed=1, sizes={"batch": 0}, probe=True, verdict="aborted", signal="SIGABRT")
    publication.evidence.verify.cases.append(probe)
    report = publish(publication)
    client = MlflowClient(store_uri, store_uri)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/toy/1", dst_path=str(tmp_path / "got")))
    text = (folder / "MODEL_CARD.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert (found["license"], found["library_name"]) == ("apache-2.0", "onnx")
    assert found["model-index"][0]["results"][0]["metrics"][0] == {"type": "accuracy", "name": "quality", "value": 0.9}
    assert "the plain export aborts at batch 0; the session refuses it (probe empty@b0)" in body
    assert "Contact: team &lt;a@b.c>." in body
    assert "divide by 255" in body
    assert "MODEL_CARD.md" in {item.path for item in client.list_artifacts(report.run_id)}
    first = not_none(client.get_model_version("toy", "1").description)
    assert first.startswith("fast on cpu, 1.25 times as fast")
    assert f"runs/{report.run_id}" in first
    other = replace(publication, params={**params, "card": {**about, "license": "mit"}})
    assert publish(other).run_id == report.run_id  # a card is no evidence
    assert "Licence: mit" in not_none(client.get_model_version("toy", "1").description)


def test_a_long_card_is_cut_for_the_description(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    publication.evidence.verify.findings = [f"finding {number} " + "x" * 80 for number in range(100)]
    publish(publication)
    found = not_none(MlflowClient(store_uri, store_uri).get_model_version("toy", "1").description)
    assert len(found) <= 5000
    assert found.endswith("MODEL_CARD.md of the version and of its run.")


def test_the_load_of_the_machine_becomes_system_metrics(store_uri: str, tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    folder = publication.reports / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    samples = [{"timestamp": 1.5 + n, "cpu_utilization_percentage": 50.0 + n} for n in range(3)]
    (folder / "system.json").write_text(json.dumps({"samples": samples}))
    run_id = publish(publication).run_id
    history = MlflowClient(store_uri, store_uri).get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [(point.timestamp, point.value) for point in history] == [(1500, 50.0), (2500, 51.0), (3500, 52.0)]
