"""Custom gates: Great Expectations suites on the evidence, in a real store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onward.registry.errors import Refused, UsageError
from onward.registry.gates import expectations as suites
from onward.registry.gates import policy
from onward.registry.operations import promotion
from onward.registry.operations.promotion import Outcome
from onward.registry.store.store import Store
from tests.conftest import not_none
from tests.evidence_factory import register
from tests.store_factory import add_candidate, fresh_store

QUICK = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "latency_ratio", "max_value": 0.8}}
SMALL = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "size_mb", "max_value": 5.0}}
NO_WORSE = {
    "type": "expect_column_pair_values_a_to_be_greater_than_b",
    "kwargs": {"column_A": "quality", "column_B": "live.quality", "or_equal": True},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def require(folder: Path, *expectations: dict[str, Any]) -> None:
    """Make staging require a suite of these expectations."""
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "gates").mkdir(exist_ok=True)
    (folder / "gates" / "ours.json").write_text(json.dumps({"expectations": expectations}))
    (folder / "params.yaml").write_text(
        "environments: {staging: {from: candidate, require: [parity, gates/ours.json]}}\n"
    )


def promote(store: Store, version: int | None = None, **options: Any) -> Outcome:
    return promotion.promote("cnn", "staging", version, reason="because", store=store, **options)


def test_suite_results_are_stored_with_the_entry(store: Store, tmp_path: Path) -> None:
    require(tmp_path, QUICK, SMALL)
    entry = promote(store, add_candidate(store, "cnn")).entry
    assert sorted(str(gate) for gate in not_none(entry).gates) == [
        'gates/ours.json: expect_column_values_to_be_between(latency_ratio) {"max_value": 0.8}: latency_ratio is 0.71',
        'gates/ours.json: expect_column_values_to_be_between(size_mb) {"max_value": 5.0}: size_mb is 0.001',
        "parity: passed",
    ]
    client = store._client
    kept = {file.path for file in client.list_artifacts(not_none(entry).gates_run, "gates")}
    assert kept == {"gates/results.json", "gates/gates"}
    assert [file.path for file in client.list_artifacts(not_none(entry).gates_run, "gates/gates")] == [
        "gates/gates/ours.html"
    ]
    page = client.download_artifacts(not_none(entry).gates_run, "gates/gates/ours.html", str(tmp_path))
    with open(page) as file:
        assert "latency_ratio" in file.read()


def test_every_unmet_expectation_is_listed_with_the_other_gates(store: Store, tmp_path: Path) -> None:
    require(tmp_path, QUICK, SMALL)
    version = add_candidate(store, "cnn", parity="failed", latency_ratio="0.9", size_mb="7")
    with pytest.raises(Refused) as refused:
        promote(store, version)
    unmet = [line.strip().split(":")[0] for line in str(refused.value).splitlines()[1:]]
    assert unmet == ["parity", "gates/ours.json", "gates/ours.json"]
    entry = promote(store, version, force=True).entry
    assert not_none(entry).forced
    assert "unmet: parity, gates/ours.json" in str(entry)


@pytest.mark.parametrize("value", [None, "nan", "often"])
def test_a_missing_metric_is_unmet(store: Store, tmp_path: Path, value: str | None) -> None:
    require(tmp_path, SMALL)
    with pytest.raises(Refused, match="size_mb"):
        promote(store, add_candidate(store, "cnn", size_mb=value))


def test_a_version_is_compared_with_the_live_version(store: Store, tmp_path: Path) -> None:
    require(tmp_path, NO_WORSE)
    assert promote(store, add_candidate(store, "cnn", 1, quality="0.9")).changed
    worse = add_candidate(store, "cnn", 2, quality="0.89")
    with pytest.raises(Refused, match=r"quality is 0\.89, live\.quality is 0\.9"):
        promote(store, worse)
    assert promote(store, add_candidate(store, "cnn", 3, quality="0.9")).changed


def test_the_newest_version_that_passes_the_suite_is_promoted(store: Store, tmp_path: Path) -> None:
    require(tmp_path, SMALL)
    fit = add_candidate(store, "cnn", 1)
    add_candidate(store, "cnn", 2, size_mb="7")
    assert promote(store).version == fit


def test_a_suite_sees_the_metrics_of_the_run(store: Store, tmp_path: Path) -> None:
    latency = {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "metrics.latency_cpu/b1_p50_ms", "max_value": 0.5},
    }
    require(tmp_path, latency)
    version = register(tmp_path, model="cnn")
    with pytest.raises(Refused, match=r"metrics\.latency_cpu/b1_p50_ms is 0\.8"):
        promote(store, version)


def test_a_dry_run_creates_no_run(store: Store, tmp_path: Path) -> None:
    require(tmp_path, SMALL)
    add_candidate(store, "cnn")
    assert [gate.met for gate in promote(store, dry_run=True).gates] == [True, True]
    assert store._client.get_experiment_by_name("environments/staging") is None or not store._client.search_runs(
        [not_none(store._client.get_experiment_by_name("environments/staging")).experiment_id]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file in the repository"),
        ("{}", "must be JSON of the form"),
        ("[", "must be JSON of the form"),
        ('{"expectations": []}', "must be JSON of the form"),
        ('{"expectations": [{"type": "expect_miracles"}]}', "Great Expectations rejects it"),
    ],
)
def test_an_invalid_suite_is_a_usage_error(store: Store, tmp_path: Path, text: str | None, message: str) -> None:
    require(tmp_path, SMALL)
    path = tmp_path / "gates" / "ours.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        promote(store, add_candidate(store, "cnn"))


@pytest.mark.parametrize("path", ["/etc/gates.json", "../gates.json"])
def test_a_suite_must_be_inside_the_repository(path: str) -> None:
    with pytest.raises(UsageError, match=r"environments\.a\.require\[0\]: .* must be a path inside the repository"):
        policy.parse({"a": {"from": "candidate", "require": [path]}})


def test_without_great_expectations_the_error_names_the_install_command(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(tmp_path, SMALL)
    monkeypatch.setitem(sys.modules, "great_expectations", None)
    with pytest.raises(UsageError, match="pip install great-expectations"):
        suites.judge("gates/ours.json", {"size_mb": 1.0})


def test_great_expectations_adds_nothing_to_the_output_of_a_command(store: Store, tmp_path: Path) -> None:
    require(tmp_path, SMALL, NO_WORSE)
    add_candidate(store, "cnn")
    command = [
        sys.executable,
        "-m",
        "onward.cli",
        "promote",
        "cnn",
        "--to",
        "staging",
        "--reason",
        "because",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert [gate["met"] for gate in json.loads(done.stdout)["gates"]] == [True, True, True]


def test_status_and_promotion_without_suites_do_not_import_great_expectations(store: Store) -> None:
    add_candidate(store, "cnn")
    code = (
        "import sys\nfrom onward import promote, status\n"
        "promote('cnn', 'staging', reason='because')\nstatus()\n"
        "print('great_expectations' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
