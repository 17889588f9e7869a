"""Promotion and rollback on a real store: order, gates, races, crashes, and deleted candidates."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from onward.registry.errors import LostRace, Refused, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.operations import overview, promotion
from onward.registry.operations.promotion import Outcome
from onward.registry.store.resolve import resolve
from onward.registry.store.schema import Drift
from onward.registry.store.store import Store
from tests import race
from tests.conftest import not_none
from tests.store_factory import add_candidate, artifacts_of, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def promote(store: Store, to: str, version: int | None = None, **options: Any) -> Outcome:
    return promotion.promote("cnn", to, version, reason="because", store=store, **options)


def rollback(store: Store, environment: str = "staging", **options: Any) -> Outcome:
    return promotion.rollback("cnn", environment, reason="because", store=store, **options)


def live(store: Store, environment: str = "staging") -> int | None:
    entry = store.log(environment, "cnn").history.live
    return entry.candidate_version if entry else None


def through_staging(store: Store, version: int) -> Outcome:
    promote(store, "staging", version)
    return promote(store, "production")


def test_a_version_is_promoted_through_staging_to_production(store: Store) -> None:
    version = add_candidate(store, "cnn")
    with pytest.raises(Refused, match="takes the version that is live in staging, and nothing is"):
        promote(store, "production")
    with pytest.raises(Refused, match="order: production takes the version that is live in staging, which is nothing"):
        promote(store, "production", version)
    assert promote(store, "staging").version == version
    assert promote(store, "production").version == version
    assert store.versions.aliases("production.cnn") == {"live": 1}
    assert store.versions.aliases("cnn") == {"staging": version, "production": version}


def test_a_later_candidate_cannot_skip_staging(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    second = add_candidate(store, "cnn", 2)
    promote(store, "staging", 1)
    with pytest.raises(Refused, match="which is version 1"):
        promote(store, "production", second)
    assert live(store, "production") is None


def test_every_unmet_requirement_is_named(store: Store) -> None:
    version = add_candidate(
        store, "cnn", recorded_factor=3, parity="failed", data=None, quality_drop="0.02", latency_ratio="1.3"
    )
    with pytest.raises(Refused) as refused:
        promote(store, "staging", version)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "parity: failed",
        "quality: drops by 0.02, 0.005 allowed",
        "data: no evidence recorded",
    ]
    promote(store, "staging", version, force=True)
    with pytest.raises(Refused) as refused:
        promote(store, "production")
    unmet = [line.split(":")[0].strip() for line in str(refused.value).splitlines()[1:]]
    assert unmet == ["parity", "quality", "data", "latency", "replay"]
    assert live(store, "production") is None


def test_the_history_records_force(store: Store) -> None:
    version = add_candidate(store, "cnn", data="failed")
    promote(store, "staging", version, force=True)
    [entry] = overview.history("cnn", "staging", store)["staging"].history.entries()
    assert entry.forced
    assert "unmet: data" in str(entry)
    assert "unmet: data" in not_none(store._client.get_model_version("staging.cnn", "1").description)


def test_force_is_not_recorded_if_all_gates_are_met(store: Store) -> None:
    version = add_candidate(store, "cnn")
    assert not not_none(promote(store, "staging", version, force=True).entry).forced


def test_force_does_not_accept_changed_bytes(store: Store) -> None:
    version = add_candidate(store, "cnn")
    model = artifacts_of(store, "cnn", version) / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(Refused, match=r"cnn version 1: .*model.onnx has changed"):
        promote(store, "staging", version, force=True)
    assert live(store) is None


def test_a_version_not_published_by_onward_is_rejected_even_with_force(store: Store) -> None:
    version = add_candidate(store, "cnn", sha256=None)
    with pytest.raises(Refused, match="no sha256"):
        promote(store, "staging", version, force=True)


def test_the_newest_acceptable_version_is_promoted(store: Store) -> None:
    add_candidate(store, "cnn", 1)
    fit = add_candidate(store, "cnn", 2)
    add_candidate(store, "cnn", 3, parity="failed")
    assert promote(store, "staging").version == fit


def test_a_live_version_is_not_deployed_again(store: Store) -> None:
    version = add_candidate(store, "cnn")
    assert promote(store, "staging", version).changed
    assert not promote(store, "staging", version).changed
    assert len(store.log("staging", "cnn").history.entries()) == 1


def test_a_dry_run_changes_nothing(store: Store) -> None:
    add_candidate(store, "cnn")
    outcome = promote(store, "staging", dry_run=True)
    assert outcome.dry_run
    assert [gate.met for gate in outcome.gates] == [True, True, True]
    assert store.versions.aliases("staging.cnn") == {}
    assert overview.status(store)[0].environments[0].live is None


def test_each_environment_keeps_one_copy_of_the_bytes(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    for version in (1, 2, 1):
        promote(store, "staging", version)
    first, second, third = store.log("staging", "cnn").history.counted
    assert first.source == third.source != second.source
    through_staging(store, 1)
    assert not_none(store.log("production", "cnn").history.live).source != first.source


def test_two_rollbacks_go_back_two_versions(store: Store) -> None:
    for factor in (1, 2, 3):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    assert [rollback(store).version for _ in range(2)] == [2, 1]
    with pytest.raises(Refused, match=r"staging.cnn: there is nothing to roll back to"):
        rollback(store)
    assert rollback(store, to=3).version == 3
    assert store.versions.aliases("staging.cnn") == {"live": 6}
    assert store.versions.aliases("cnn") == {"staging": 3}


def test_rollback_survives_deleted_candidates_runs_and_experiments(store: Store, tmp_path: Path) -> None:
    for factor in (1, 2):
        through_staging(store, add_candidate(store, "cnn", factor))
    client = store._client
    experiment = client.get_experiment_by_name("onward")
    client.delete_registered_model("cnn")
    for logged in client.search_logged_models([not_none(experiment).experiment_id]):
        client.delete_logged_model(logged.model_id)
    for run in client.search_runs([not_none(experiment).experiment_id]):
        client.delete_run(run.info.run_id)
    client.delete_experiment(not_none(experiment).experiment_id)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shutil.rmtree(tmp_path / "mlartifacts" / "onward", ignore_errors=True)
    assert rollback(store, "production").version == 1
    assert overview.check("cnn", "production", store).met
    assert [environment.drift for environment in overview.status(store)[0].environments] == [(), ()]


def test_staging_promotes_without_its_candidate(store: Store) -> None:
    promote(store, "staging", add_candidate(store, "cnn"))
    store._client.delete_model_version("cnn", "1")
    assert promote(store, "production").version == 1


def test_a_new_candidate_with_a_reused_number_is_not_confused_with_the_old_one(store: Store) -> None:
    promote(store, "staging", add_candidate(store, "cnn", 1))
    store._client.delete_registered_model("cnn")
    assert add_candidate(store, "cnn", 2) == 1
    promotion.reconcile(store)
    assert store.versions.aliases("cnn") == {}


def test_the_slower_of_two_authors_learns_the_winner(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promote(store, "staging", 1)
    stale = not_none(store.log("staging", "cnn").history.live).model_copy(
        update={"key": "stale", "base": 0, "actor": "bob"}
    )
    with pytest.raises(LostRace, match="another command was faster") as lost:
        store.append("staging", "cnn", stale)
    assert "ann promoted version 1" in str(lost.value)
    log = store.log("staging", "cnn")
    assert log.marked == {2}
    assert log.history.base == 1
    assert not_none(promote(store, "staging", 2).entry).number == 3


def test_racing_processes_all_get_the_correct_result(store: Store) -> None:
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor)
    processes, attempts = 3, 6
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        told = pool.starmap(race.promote_and_roll_back, [(seed, attempts) for seed in range(processes)])
    answers = [answer for answers in told for answer in answers]
    assert len(answers) == processes * attempts
    log = store.log("staging", "cnn")
    assert len(log.history.counted) == answers.count("won") > 0
    for number, answers in enumerate(told):
        mine = [entry for entry in log.history.counted if entry.actor == f"p{number}"]
        assert len(mine) == answers.count("won")
    assert log.marked == {entry.number for entry in log.history.lost}
    promotion.reconcile(store)
    assert store.versions.aliases("staging.cnn") == {"live": not_none(log.history.live).number}
    assert store.versions.aliases("cnn") == {"staging": not_none(log.history.live).candidate_version}


def test_a_kill_between_entry_and_alias_is_repaired(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promote(store, "staging", 1)
    process = multiprocessing.get_context("spawn").Process(target=race.promote_and_die_before_the_alias, args=(2,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert live(store) == 2
    assert store.versions.aliases("staging.cnn") == {"live": 1}
    [status] = overview.status(store)
    assert {drift.alias for drift in status.environments[0].drift} == {"live", "staging"}
    assert promote(store, "production").version == 2
    promote(store, "staging", 2)
    assert store.versions.aliases("staging.cnn") == {"live": 2}
    assert promotion.reconcile(store) == []


def test_an_entry_with_a_lost_response_counts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_candidate(store, "cnn")
    create = store._client.create_model_version

    def create_and_break_off(*arguments: Any, **options: Any) -> NoReturn:
        create(*arguments, **options)
        raise ConnectionError("broken off")

    monkeypatch.setattr(store._client, "create_model_version", create_and_break_off)
    assert not_none(promote(store, "staging", version).entry).number == 1
    assert store.versions.aliases("staging.cnn") == {"live": 1}


def test_unwritable_aliases_do_not_undo_the_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    version = add_candidate(store, "cnn")

    def broken_off(*arguments: Any) -> NoReturn:
        raise ConnectionError("broken off")

    with monkeypatch.context() as broken:
        broken.setattr(store._client._get_registry_client(), "set_registered_model_alias", broken_off)  # type: ignore[no-untyped-call]
        outcome = promote(store, "staging", version)
    assert outcome.changed
    assert "onward reconcile" in outcome.note
    assert len(promotion.reconcile(store)) == 2


def test_reconcile_corrects_manual_changes(store: Store) -> None:
    for factor in (1, 2):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    store._client.set_registered_model_alias("staging.cnn", "live", "1")
    store._client.delete_registered_model_alias("cnn", "staging")
    assert len(promotion.reconcile(store)) == 2
    assert store.versions.aliases("staging.cnn") == {"live": 2}
    assert promotion.reconcile(store) == []


@pytest.mark.parametrize("overtakings", [1, 3])
def test_an_overtaken_repair_reads_the_log_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, overtakings: int
) -> None:
    for factor in range(overtakings + 1):
        add_candidate(store, "cnn", factor)
    other, write, left = Store(), Store._write, list(range(2, overtakings + 2))

    def write_too_late(self: Store, drift: Drift) -> None:
        """Let another author deploy and repair between the read of the log and this write."""
        if self is store and drift.alias == "live" and left:
            promote(other, "staging", left.pop(0))
        write(self, drift)

    monkeypatch.setattr(Store, "_write", write_too_late)
    assert promote(store, "staging", 1).changed
    assert not left
    assert live(store) == overtakings + 1
    assert store.versions.aliases("staging.cnn") == {"live": overtakings + 1}
    assert store.versions.aliases("cnn") == {"staging": overtakings + 1}


def test_the_cost_of_a_change_does_not_grow_with_the_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in (1, 2):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    search, read = store._client.search_model_versions, []

    def counted(*arguments: Any, **options: Any) -> Any:
        page = search(*arguments, **options)
        read.append(len(page))
        return page

    monkeypatch.setattr(store._client, "search_model_versions", counted)
    costs = []
    for _ in range(12):
        read.clear()
        rollback(store)
        promote(store, "staging", 2)
        overview.status(store)
        costs.append((len(read), max(read)))
    assert len(store.log("staging", "cnn").history.entries()) == 26
    assert costs[-1] == costs[-2] == costs[-3] == (costs[-1][0], 3)


def test_a_rollback_to_an_old_entry_reads_back_to_that_entry(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    for number in range(24):
        promote(store, "staging", 1 + number % 2)
    assert rollback(store, to=1).version == 1
    with pytest.raises(UsageError, match="there is no entry 70"):
        rollback(store, to=70)


def test_a_version_registered_by_hand_is_ignored(store: Store) -> None:
    promote(store, "staging", add_candidate(store, "cnn", 1))
    store._client.create_model_version("staging.cnn", source="models:/cnn/1")
    assert live(store) == 1
    assert overview.status(store)[0].environments[0].foreign == (2,)
    assert not_none(promote(store, "staging", add_candidate(store, "cnn", 2)).entry).number == 3


def test_an_entry_of_a_newer_onward_is_not_interpreted(store: Store) -> None:
    promote(store, "staging", add_candidate(store, "cnn"))
    store._client.set_model_version_tag("staging.cnn", "1", "schema", "3")
    for look in (lambda: resolve("cnn@staging", store), lambda: promote(store, "staging", 1)):
        with pytest.raises(UsageError, match="newer Onward"):
            look()
    assert overview.status(store)[0].environments[0].newer == (1,)


def test_invalid_names_never_reach_paths_or_filters(store: Store) -> None:
    for name in ("../cnn", "cnn' or '1'='1", "a.b", "", "-x", "cnn/1"):
        with pytest.raises(UsageError, match="name for a model"):
            promotion.promote(name, "staging", reason="because", store=store)
    with pytest.raises(UsageError, match=r"no environment 'moon'; params\.yaml has staging, production"):
        promote(store, "moon")
    with pytest.raises(UsageError, match="no version of 'cnn'"):
        promote(store, "staging", 1)
    add_candidate(store, "cnn")
    with pytest.raises(UsageError, match="no version 7 of cnn"):
        promote(store, "staging", 7)


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 1001])
def test_a_reason_is_required(store: Store, reason: str) -> None:
    with pytest.raises(UsageError, match="--reason"):
        promotion.promote("cnn", "staging", reason=reason, store=store)


def test_a_store_that_cannot_be_opened_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9 could not be reached"):
        overview.status()


def test_environments_of_params_yaml_apply(store: Store, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("environments: {live-test: {from: candidate, require: []}}\n")
    add_candidate(store, "cnn", data="failed")
    assert promote(store, "live-test").changed
    with pytest.raises(UsageError, match=r"params\.yaml has live-test"):
        promote(store, "staging")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"a": {"from": "candidate", "require": [], "requires": []}}, "environments.a.requires: unknown key"),
        ({"a": {"from": "candidate", "require": ["speed"]}}, r"environments.a.require\[0\]: no requirement 'speed'"),
        ({"a": {"from": "candidate", "require": "parity"}}, "environments.a.require: "),
        ({"a": {"require": []}}, "environments.a.from: "),
        ({"a": {"from": "b", "require": []}}, "environments.a.from: no environment 'b'"),
        ({"a": {"from": "b", "require": []}, "b": {"from": "a", "require": []}}, "forms a cycle"),
        ({"a.b": {"from": "candidate", "require": []}}, "environments.a.b: not a valid name"),
        ({"candidate": {"from": "candidate", "require": []}}, "environments.candidate: this name is reserved"),
        ([], "environments: has to map"),
        ({"a": 3}, "environments.a: "),
    ],
)
def test_invalid_environments_are_rejected_with_their_path(section: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        policy.parse(section)
