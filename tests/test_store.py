"""Promotion and rollback on a real store: order, gates, races, crashes, and what is deleted underneath."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import subprocess
import sys

import pytest

from onward.registry.errors import LostRace, Refused, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.operations import overview, promotion
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store
from tests import race
from tests.store_factory import add_candidate, artifacts_of, fresh_store


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def promote(store, to, version=None, **options):
    return promotion.promote("cnn", to, version, reason="because", store=store, **options)


def rollback(store, environment="staging", **options):
    return promotion.rollback("cnn", environment, reason="because", store=store, **options)


def live(store, environment="staging"):
    entry = store.log(environment, "cnn").history.live
    return entry.candidate_version if entry else None


def through_staging(store, version):
    promote(store, "staging", version)
    return promote(store, "production")


def test_a_version_goes_through_staging_to_production(store):
    version = add_candidate(store, "cnn")
    with pytest.raises(Refused, match="takes the version that is live in staging, and nothing is"):
        promote(store, "production")
    with pytest.raises(Refused, match="order: production takes the version that is live in staging, which is nothing"):
        promote(store, "production", version)
    assert promote(store, "staging").version == version
    assert promote(store, "production").version == version
    assert store.versions.aliases("production.cnn") == {"live": 1}
    assert store.versions.aliases("cnn") == {"staging": version, "production": version}


def test_a_later_candidate_does_not_slip_past_staging(store):
    add_candidate(store, "cnn", 1)
    second = add_candidate(store, "cnn", 2)
    promote(store, "staging", 1)
    with pytest.raises(Refused, match="which is version 1"):
        promote(store, "production", second)
    assert live(store, "production") is None


def test_every_unmet_requirement_is_named(store):
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


def test_force_is_kept_in_history(store):
    version = add_candidate(store, "cnn", data="failed")
    promote(store, "staging", version, force=True)
    [entry] = overview.history("cnn", "staging", store)["staging"].history.entries()
    assert entry.forced
    assert "unmet: data" in str(entry)
    assert "unmet: data" in store._client.get_model_version("staging.cnn", "1").description


def test_force_past_gates_that_are_met_is_no_stain(store):
    version = add_candidate(store, "cnn")
    assert not promote(store, "staging", version, force=True).entry.forced


def test_force_never_passes_changed_bytes(store):
    version = add_candidate(store, "cnn")
    model = artifacts_of(store, "cnn", version) / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(Refused, match=r"cnn version 1: .*model.onnx has changed"):
        promote(store, "staging", version, force=True)
    assert live(store) is None


def test_a_version_that_onward_did_not_publish_is_refused_even_by_force(store):
    version = add_candidate(store, "cnn", sha256=None)
    with pytest.raises(Refused, match="no sha256"):
        promote(store, "staging", version, force=True)


def test_the_newest_version_that_is_fit_is_promoted(store):
    add_candidate(store, "cnn", 1)
    fit = add_candidate(store, "cnn", 2)
    add_candidate(store, "cnn", 3, parity="failed")
    assert promote(store, "staging").version == fit


def test_what_is_live_already_is_not_deployed_again(store):
    version = add_candidate(store, "cnn")
    assert promote(store, "staging", version).changed
    assert not promote(store, "staging", version).changed
    assert len(store.log("staging", "cnn").history.entries()) == 1


def test_a_dry_run_changes_nothing(store):
    add_candidate(store, "cnn")
    outcome = promote(store, "staging", dry_run=True)
    assert outcome.dry_run
    assert [gate.met for gate in outcome.gates] == [True, True, True]
    assert store.versions.aliases("staging.cnn") == {}
    assert overview.status(store)[0].environments[0].live is None


def test_one_copy_of_the_bytes_per_environment(store):
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    for version in (1, 2, 1):
        promote(store, "staging", version)
    first, second, third = store.log("staging", "cnn").history.counted
    assert first.source == third.source != second.source
    through_staging(store, 1)
    assert store.log("production", "cnn").history.live.source != first.source


def test_two_rollbacks_go_two_back(store):
    for factor in (1, 2, 3):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    assert [rollback(store).version for _ in range(2)] == [2, 1]
    with pytest.raises(Refused, match=r"staging.cnn: there is nothing to roll back to"):
        rollback(store)
    assert rollback(store, to=3).version == 3
    assert store.versions.aliases("staging.cnn") == {"live": 6}
    assert store.versions.aliases("cnn") == {"staging": 3}


def test_rollback_survives_deleted_candidates_runs_and_experiments(store, tmp_path):
    for factor in (1, 2):
        through_staging(store, add_candidate(store, "cnn", factor))
    client = store._client
    experiment = client.get_experiment_by_name("onward")
    client.delete_registered_model("cnn")
    for logged in client.search_logged_models([experiment.experiment_id]):
        client.delete_logged_model(logged.model_id)
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)
    client.delete_experiment(experiment.experiment_id)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    shutil.rmtree(tmp_path / "mlartifacts" / "onward", ignore_errors=True)
    assert rollback(store, "production").version == 1
    assert overview.check("cnn", "production", store).met
    assert [environment.drift for environment in overview.status(store)[0].environments] == [(), ()]


def test_staging_promotes_without_its_candidate(store):
    promote(store, "staging", add_candidate(store, "cnn"))
    store._client.delete_model_version("cnn", "1")
    assert promote(store, "production").version == 1


def test_a_new_candidate_of_an_old_number_is_not_mistaken_for_it(store):
    promote(store, "staging", add_candidate(store, "cnn", 1))
    store._client.delete_registered_model("cnn")
    assert add_candidate(store, "cnn", 2) == 1
    promotion.reconcile(store)
    assert store.versions.aliases("cnn") == {}


def test_the_slower_of_two_authors_is_told_who_won(store):
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promote(store, "staging", 1)
    stale = store.log("staging", "cnn").history.live.model_copy(update={"key": "stale", "base": 0, "actor": "bob"})
    with pytest.raises(LostRace, match="another command was faster") as lost:
        store.append("staging", "cnn", stale)
    assert "ann promoted version 1" in str(lost.value)
    log = store.log("staging", "cnn")
    assert log.marked == {2}
    assert log.history.base == 1
    assert promote(store, "staging", 2).entry.number == 3


def test_processes_that_race_are_all_told_the_truth(store):
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
    assert store.versions.aliases("staging.cnn") == {"live": log.history.live.number}
    assert store.versions.aliases("cnn") == {"staging": log.history.live.candidate_version}


def test_a_kill_between_entry_and_alias_is_healed(store):
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


def test_an_entry_whose_answer_was_lost_counts(store, monkeypatch):
    version = add_candidate(store, "cnn")
    create = store._client.create_model_version

    def create_and_break_off(*arguments, **options):
        create(*arguments, **options)
        raise ConnectionError("broken off")

    monkeypatch.setattr(store._client, "create_model_version", create_and_break_off)
    assert promote(store, "staging", version).entry.number == 1
    assert store.versions.aliases("staging.cnn") == {"live": 1}


def test_aliases_that_cannot_be_written_do_not_undo_the_entry(store, monkeypatch):
    version = add_candidate(store, "cnn")

    def broken_off(*arguments):
        raise ConnectionError("broken off")

    with monkeypatch.context() as broken:
        broken.setattr(store._client._get_registry_client(), "set_registered_model_alias", broken_off)
        outcome = promote(store, "staging", version)
    assert outcome.changed
    assert "onward reconcile" in outcome.note
    assert len(promotion.reconcile(store)) == 2


def test_reconcile_puts_right_what_a_hand_changed(store):
    for factor in (1, 2):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    store._client.set_registered_model_alias("staging.cnn", "live", "1")
    store._client.delete_registered_model_alias("cnn", "staging")
    assert len(promotion.reconcile(store)) == 2
    assert store.versions.aliases("staging.cnn") == {"live": 2}
    assert promotion.reconcile(store) == []


@pytest.mark.parametrize("overtakings", [1, 3])
def test_a_healing_pass_that_was_overtaken_looks_at_the_log_again(store, monkeypatch, overtakings):
    for factor in range(overtakings + 1):
        add_candidate(store, "cnn", factor)
    other, write, left = Store(), Store._write, list(range(2, overtakings + 2))

    def write_too_late(self, drift):
        """Between a look at the log and what is written then, somebody else deploys and heals."""
        if self is store and drift.alias == "live" and left:
            promote(other, "staging", left.pop(0))
        write(self, drift)

    monkeypatch.setattr(Store, "_write", write_too_late)
    assert promote(store, "staging", 1).changed
    assert not left
    assert live(store) == overtakings + 1
    assert store.versions.aliases("staging.cnn") == {"live": overtakings + 1}
    assert store.versions.aliases("cnn") == {"staging": overtakings + 1}


def test_the_cost_of_a_change_does_not_grow_with_the_log(store, monkeypatch):
    for factor in (1, 2):
        promote(store, "staging", add_candidate(store, "cnn", factor))
    search, read = store._client.search_model_versions, []

    def counted(*arguments, **options):
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


def test_a_rollback_to_an_old_entry_reads_as_far_back_as_that(store):
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    for number in range(24):
        promote(store, "staging", 1 + number % 2)
    assert rollback(store, to=1).version == 1
    with pytest.raises(UsageError, match="there is no entry 70"):
        rollback(store, to=70)


def test_a_version_registered_by_hand_counts_for_nothing(store):
    promote(store, "staging", add_candidate(store, "cnn", 1))
    store._client.create_model_version("staging.cnn", source="models:/cnn/1")
    assert live(store) == 1
    assert overview.status(store)[0].environments[0].foreign == (2,)
    assert promote(store, "staging", add_candidate(store, "cnn", 2)).entry.number == 3


def test_an_entry_of_a_newer_onward_is_not_guessed_at(store):
    promote(store, "staging", add_candidate(store, "cnn"))
    store._client.set_model_version_tag("staging.cnn", "1", "schema", "3")
    for look in (lambda: resolve("cnn@staging", store), lambda: promote(store, "staging", 1)):
        with pytest.raises(UsageError, match="newer Onward"):
            look()
    assert overview.status(store)[0].environments[0].newer == (1,)


def test_wrong_names_reach_neither_paths_nor_filters(store):
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
def test_a_reason_is_needed(store, reason):
    with pytest.raises(UsageError, match="--reason"):
        promotion.promote("cnn", "staging", reason=reason, store=store)


def test_a_store_that_cannot_be_opened_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:9 could not be reached"):
        overview.status()


def test_environments_of_params_yaml_are_obeyed(store, tmp_path):
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
def test_wrong_environments_are_refused_with_their_path(section, message):
    with pytest.raises(UsageError, match=message):
        policy.parse(section)
