"""How the log is written and read in a real store, row by row; the entries of these tests have no files."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from onward.registry.errors import LostRace, Refused, StoreMissing, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import Draft, Entry
from onward.registry.operations import promotion
from onward.registry.store import relocate, webhooks
from onward.registry.store import store as module
from onward.registry.store.connection import as_default, ensure_experiment
from onward.registry.store.schema import Drift, Log, RegisteredVersion, approval_source, to_tags
from onward.registry.store.store import Store
from onward.registry.trust import entry_signatures
from onward.registry.trust.entry_signatures import link
from tests.conftest import not_none
from tests.store_factory import fresh_store

SHA, OTHER = "a" * 64, "b" * 64
LOG = "staging.cnn"
GAVE_UP = "Model Version creation error (name=staging.cnn). Giving up after 3 attempts."


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def draft(key: str, base: int = 0, **changes: Any) -> Draft:
    said = {
        "kind": "promote", "key": key, "base": base, "sha256": SHA, "candidate_version": 1, "source": "x",
        "actor": "ann", "reason": "because", "at": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return Draft.model_validate({**said, **changes})


def approval(key: str, sha256: str = SHA) -> Draft:
    return draft(key, kind="approve", sha256=sha256, source=approval_source(sha256))


def append(store: Store, key: str, base: int = 0, **changes: Any) -> Log:
    return store.append("staging", "cnn", draft(key, base, **changes))


def write(store: Store, key: str, base: int = 0, **changes: Any) -> None:
    """Add a row, whether or not it counts."""
    assert store._try_append(LOG, draft(key, base, **changes)) is True


def write_from_another_process(store: Store, key: str, base: int = 0) -> None:
    """Add a row from another process: `write` would wait for the lock of this process."""
    said = draft(key, base)
    client = MlflowClient(store.uri, store.uri)
    client.create_model_version(LOG, source="x", tags=to_tags(said), run_link=link(said, LOG), await_creation_for=0)


def chain(store: Store, length: int) -> None:
    """Add rows 1 to `length`, each of which counts."""
    store._create(LOG)
    for number in range(length):
        write(store, f"k{number + 1}", number)


def keys_of(store: Store) -> list[str]:
    return [entry.key for entry in store.log("staging", "cnn").entries()]


@pytest.fixture
def looks(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that read versions, as their arguments."""
    search, asked = store._client.search_model_versions, []

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return search(*arguments, **options)

    monkeypatch.setattr(store._client, "search_model_versions", counted)
    return asked


@dataclasses.dataclass
class Creating:
    """Requests for new versions, and what happens before the next ones: exceptions to raise or functions to call."""

    asked: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    before: list[Any] = dataclasses.field(default_factory=list)


@pytest.fixture
def creating(store: Store, monkeypatch: pytest.MonkeyPatch) -> Creating:
    create, found = store._client.create_model_version, Creating()

    def watched(name: str, **options: Any) -> Any:
        found.asked.append({"name": name, **options})
        happens = found.before.pop(0) if found.before else None
        if isinstance(happens, Exception):
            raise happens
        if happens is not None:
            happens()
        return create(name, **options)

    monkeypatch.setattr(store._client, "create_model_version", watched)
    return found


# The store itself


def test_a_store_uses_the_given_client_or_opens_one_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: Any = []
    monkeypatch.setattr(module, "connect", lambda create: opened.append(create) or f"client {create}")
    given: Any = object()
    assert Store(given)._client is given
    assert opened == []
    clients: list[Any] = [Store()._client, Store(create=False)._client, Store(create=True)._client]
    assert clients == ["client True", "client False", "client True"]
    store = Store()
    assert store._client is store._client
    assert opened == [True, False, True, True]


def test_reading_does_not_create_a_missing_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(StoreMissing):
        Store(create=False).log("staging", "cnn")
    assert list(tmp_path.iterdir()) == []


def test_a_store_knows_its_address_and_the_models_whose_pipeline_failed(store: Store, tmp_path: Path) -> None:
    assert store.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert store.failures() == {}
    assert store.files.own_copies("staging", "cnn", SHA) == []


# Reading


def test_a_log_reads_all_rows_and_a_head_only_those_that_settle_the_live_entry(store: Store, looks: list[Any]) -> None:
    assert store.log("staging", "cnn").entries() == store.head("staging", "cnn").entries() == []
    assert store.log("nowhere", "cnn").entries() == []
    chain(store, 8)
    assert [entry.number for entry in store.log("staging", "cnn").entries()] == list(range(1, 9))
    looks.clear()
    head = store.head("staging", "cnn")
    assert ([entry.number for entry in head.entries()], head.history.floor, len(looks)) == ([6, 7, 8], 5, 1)


@pytest.mark.parametrize(("down_to", "pages"), [(8, 1), (6, 1), (5, 2), (1, 2)])
def test_a_head_reads_down_to_the_requested_entry_and_no_further(
    store: Store, looks: list[Any], down_to: int, pages: int
) -> None:
    chain(store, 40)  # a page of 3, then one of 30, then the rest
    looks.clear()
    found = store.head("staging", "cnn", down_to=32 + down_to)
    assert len(looks) == pages
    assert found.history.find(32 + down_to).number == 32 + down_to
    assert not_none(found.history.live).number == 40


def test_a_head_of_lost_entries_is_read_until_the_live_entry_is_known(store: Store) -> None:
    chain(store, 1)
    for number in range(5):
        write(store, f"lost{number}", 0)
    assert not_none(store.head("staging", "cnn").history.live).number == 1
    assert not_none(store.head("staging", "cnn", down_to=6).history.live).number == 1


def test_reading_one_entry_takes_one_request(store: Store, looks: list[Any]) -> None:
    chain(store, 5)
    write(store, "lost", 0)
    looks.clear()
    for number in (1, 3, 5):
        assert store.entry("staging", "cnn", number).key == f"k{number}"
    assert store.entry("staging", "cnn", 6).key == "lost"
    assert looks == []
    for number in (7, 70):
        with pytest.raises(UsageError, match=rf"there is no entry {number} \(any more\)"):
            store.entry("staging", "cnn", number)
    with pytest.raises(UsageError, match="there is no entry 1"):
        store.entry("production", "cnn", 1)


@pytest.fixture
def signers(store: Store, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write the signers of staging; returns their keys."""
    made = {name: entry_signatures.create_key(tmp_path / f"{name}.pem") for name in ("ann", "bob")}

    def become(*names: str) -> dict[str, str]:
        (tmp_path / "dvc.yaml").write_text("stages: {}\n")
        known = {name: made[name] for name in names}
        section = {"staging": {"from": "candidate", "require": [], "signers": known}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"environments": section}))
        return known

    return become


@pytest.fixture
def sign(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """Append an entry of a signer."""

    def append_signed(name: str, key: str, base: int) -> None:
        monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / f"{name}.pem"))
        wanted = policy.read()["staging"]
        _, own = promotion.author(wanted, "staging", None)
        seen = store.head("staging", "cnn")
        tied = promotion.tied(draft(key, base, actor=name), LOG, seen, own)
        assert store.append("staging", "cnn", tied).history.won(key)

    return append_signed


def test_an_entry_of_a_departed_signer_is_found_at_any_depth(
    store: Store,
    signers: Callable[..., dict[str, str]],
    sign: Callable[[str, str, int], None],
    looks: list[Any],
) -> None:
    signers("ann", "bob")
    sign("ann", "k1", 0)
    sign("ann", "k2", 1)
    for number in range(2, 8):
        sign("bob", f"k{number + 1}", number)
    write(store, "by hand", 8)
    write(store, "again", 8)
    looks.clear()
    assert store.entry("staging", "cnn", 2).key == "k2"
    assert looks == []  # its own signature says enough
    signers("bob")
    for number in (1, 2, 8):
        assert store.entry("staging", "cnn", number).key == f"k{number}"
    for number in (9, 10):
        with pytest.raises(UsageError, match=rf"entry {number} does not count: none of the signers of staging"):
            store.entry("staging", "cnn", number)


def test_reading_a_lost_signed_entry_takes_one_request(
    store: Store,
    signers: Callable[..., dict[str, str]],
    sign: Callable[[str, str, int], None],
    looks: list[Any],
    tmp_path: Path,
) -> None:
    signers("ann", "bob")
    sign("ann", "k1", 0)
    before = store.head("staging", "cnn")
    sign("bob", "k2", 1)
    own = entry_signatures.own_key(policy.read()["staging"].signers, "staging")
    store._try_append(LOG, promotion.tied(draft("late", 1, actor="bob"), LOG, before, own))
    looks.clear()
    assert store.entry("staging", "cnn", 3).key == "late"
    assert looks == []
    assert [entry.number for entry in store.log("staging", "cnn").history.lost] == [3]


def test_only_logs_with_signers_are_remembered(
    store: Store, signers: Callable[..., dict[str, str]], sign: Callable[[str, str, int], None]
) -> None:
    chain(store, 2)
    store.head("staging", "cnn")
    store._client.delete_model_version(LOG, "2")
    assert (store.head("staging", "cnn").alarm, store.log("staging", "cnn").alarm) == ((), ())
    store._client.delete_registered_model(LOG)
    signers("ann", "bob")
    for number in range(2):
        sign("ann", f"k{number}", number)
    write(store, "by hand", 2)
    store.log("staging", "cnn")
    store._client.delete_model_version(LOG, "2")
    for log in (store.head("staging", "cnn"), store.log("staging", "cnn")):
        [unsigned, gone] = log.alarm
        assert unsigned.startswith("row 3 ")
        assert gone.startswith("entry 2 was live when this machine read the log before")


def test_approvals_match_the_bytes(store: Store) -> None:
    for key, sha256 in (("one", SHA), ("two", SHA), ("other", OTHER)):
        assert store.approve("staging", "cnn", approval(key, sha256)).key == key
    write(store, "deployed", 0)
    assert [found.key for found in store.approvals("staging", "cnn", SHA)] == ["one", "two"]
    assert [found.key for found in store.approvals("staging", "cnn", OTHER)] == ["other"]
    assert store.approvals("production", "cnn", SHA) == ()
    assert len(store.log("staging", "cnn").approvals) == 3


def test_only_approvals_are_requested_because_mlflow_returns_at_most_a_thousand_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Any = []
    monkeypatch.setattr(store.versions, "tagged", lambda name, **tags: asked.append((name, tags)) or [])
    assert store.approvals("staging", "cnn", SHA) == ()
    assert asked == [(LOG, {"kind": "approve", "sha256": SHA})]


def test_candidates_are_the_versions_of_a_model_newest_first(store: Store) -> None:
    assert list(store.candidates("cnn")) == []
    store._create("cnn")
    for _ in range(5):
        store._client.create_model_version("cnn", source="x", tags={"sha256": SHA})
    assert [candidate.version for candidate in store.candidates("cnn")] == [5, 4, 3, 2, 1]
    found = store.candidate("cnn", 2)
    assert (not_none(found).model, not_none(found).version, not_none(found).sha256) == ("cnn", 2, SHA)
    assert store.candidate("cnn", 6) is None


def test_a_run_has_params_and_metrics_and_is_none_if_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store._client.create_run(ensure_experiment(store._client, "onward")).info.run_id
    store._client.log_param(run, "layers", 3)
    store._client.log_metric(run, "loss", 0.5)
    assert store.run(run) == ({"layers": "3"}, {"loss": 0.5})
    assert store.run("f" * 32) is None
    asked = []

    def wrong(run_id: str) -> NoReturn:
        asked.append(run_id)
        raise MlflowException("something else")

    monkeypatch.setattr(store._client, "get_run", wrong)
    assert store.run("") is None
    assert asked == []
    with pytest.raises(MlflowException, match="something else"):
        store.run(run)


def test_environments_belong_to_exactly_this_model(store: Store) -> None:
    for name in ("b.c_n", "a.c_n", "a-b.c_n", "a.cxn", "c_n", "x.y.c_n", ".c_n", "_.c_n", "d.c_n2"):
        store._client.create_registered_model(name)
    assert store.environments("c_n") == ["a", "a-b", "b"]


# Appending


def test_a_row_contains_all_fields_of_an_entry(store: Store, creating: Creating) -> None:
    client = store._client
    model = client.create_logged_model(ensure_experiment(client, "onward"), name="m")
    client.finalize_logged_model(model.model_id, "READY")
    wanted = draft("k", source=f"models:/{model.model_id}", manifest=OTHER, forced=True)
    [written] = store.append("staging", "cnn", wanted).entries()
    assert written.model_dump() == {"number": 1, **wanted.model_dump()}
    assert written.link == link(wanted, LOG) != ""
    [asked] = creating.asked
    assert (asked["model_id"], asked["await_creation_for"]) == (model.model_id, 0)  # there is nothing to wait for
    assert "force-promoted version 1" in (not_none(store.versions.get(LOG, 1)).description or "")


def test_only_the_source_determines_the_logged_model_of_a_row() -> None:
    assert module._logged_model("models:/m-1") == "m-1"
    assert module._logged_model(approval_source(SHA)) is None


def test_an_uncontested_entry_takes_one_read_and_creates_the_model_once(
    store: Store, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = store.versions.named
    made: Any = []
    monkeypatch.setattr(store.versions, "named", lambda pattern: made.append(pattern) or named(pattern))
    for number in range(5):
        looks.clear()
        assert not_none(append(store, f"k{number}", number).history.live).number == number + 1
        assert len(looks) == 1
    assert made == [LOG]


def test_a_losing_author_marks_only_its_own_row_and_learns_the_live_version(store: Store) -> None:
    chain(store, 1)
    write(store, "lost before", 0)
    with pytest.raises(LostRace, match=r"another command was faster, .*Live now: entry 1, ann promoted version 1"):
        append(store, "lost", 0)
    log = store.log("staging", "cnn")
    assert ([entry.number for entry in log.history.lost], set(log.marked)) == ([2, 3], {3})
    assert not_none(store.versions.get(LOG, 3)).tags["lost"] == "true"


def test_a_lost_row_is_marked_even_after_later_entries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(store, 1)
    write(store, "k2", 1)
    look = Store._log_after

    def late(self: Store, environment: str, model: str, tried: Draft) -> Any:
        monkeypatch.setattr(Store, "_log_after", look)
        for number in (2, 4, 5):
            write(store, f"later{number}", number)
        return look(self, environment, model, tried)

    monkeypatch.setattr(Store, "_log_after", late)
    with pytest.raises(LostRace, match="Live now: entry 6"):
        append(store, "lost", 1)
    assert store.log("staging", "cnn").marked == {3}


def test_a_losing_author_reads_back_only_to_its_base(
    store: Store, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(store, 5)
    write(store, "k6", 5)
    look = Store._log_after

    def late(self: Store, environment: str, model: str, tried: Draft) -> Any:
        monkeypatch.setattr(Store, "_log_after", look)
        write(store, "k8", 6)
        return look(self, environment, model, tried)

    monkeypatch.setattr(Store, "_log_after", late)
    looks.clear()
    with pytest.raises(LostRace, match="Live now: entry 8"):
        append(store, "lost", 5)
    assert len(looks) == 1


def test_a_counted_row_wins_even_after_later_entries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    chain(store, 1)
    look = Store._log_after

    def late(self: Store, environment: str, model: str, tried: Draft) -> Any:
        monkeypatch.setattr(Store, "_log_after", look)
        for number in (2, 3, 4):
            write(store, f"later{number}", number)
        return look(self, environment, model, tried)

    monkeypatch.setattr(Store, "_log_after", late)
    log = append(store, "mine", 1)
    assert (not_none(log.history.won("mine")).number, not_none(log.history.live).number) == (2, 5)


def test_an_unsigned_row_is_named_as_the_reason(
    store: Store, signers: Callable[..., dict[str, str]], sign: Callable[[str, str, int], None]
) -> None:
    signers("ann")
    with pytest.raises(LostRace, match=r"a row that no signer signed was added meanwhile \(row 1 is not signed"):
        append(store, "unsigned")
    sign("ann", "k2", 0)
    with pytest.raises(LostRace, match=r"no signer signed was added .*\(row 3 is not signed.*Live now: entry 2"):
        append(store, "unsigned too", 2)


def test_a_number_that_mlflow_gave_up_on_is_retried(store: Store, creating: Creating) -> None:
    creating.before += [MlflowException(GAVE_UP), MlflowException(GAVE_UP)]
    assert not_none(append(store, "k").history.live).key == "k"
    assert (len(creating.asked), keys_of(store)) == (3, ["k"])
    creating.before += [MlflowException(GAVE_UP)]
    assert store.approve("staging", "cnn", approval("a")).key == "a"
    assert keys_of(store) == ["k", "a"]


def test_an_author_overtaken_during_retries_writes_nothing(store: Store, creating: Creating) -> None:
    def overtaken() -> None:
        write_from_another_process(store, "other")
        raise MlflowException(GAVE_UP)

    creating.before += [overtaken]
    with pytest.raises(LostRace, match="Live now: entry 1"):
        append(store, "mine")
    assert keys_of(store) == ["other"]


def test_after_twenty_retries_an_append_fails_without_a_change(store: Store, creating: Creating) -> None:
    creating.before += [MlflowException(GAVE_UP)] * 21
    with pytest.raises(StoreUnreachable, match=r"failed 20 times to assign .* of staging\.cnn: nothing was"):
        append(store, "k")
    assert (len(creating.asked), keys_of(store)) == (21, [])
    creating.asked.clear()
    creating.before += [MlflowException(GAVE_UP)] * 20
    with pytest.raises(StoreUnreachable, match=r"did not store the approval in staging\.cnn"):
        store.approve("staging", "cnn", approval("a"))
    assert (len(creating.asked), keys_of(store)) == (20, [])


@pytest.mark.parametrize("text", ["Model Version creation error: disk", "Giving up: disk", "disk"])
def test_other_errors_of_mlflow_are_not_reported_as_a_lost_race(store: Store, creating: Creating, text: str) -> None:
    creating.before += [MlflowException(text)]
    with pytest.raises(MlflowException, match="disk"):
        append(store, "k")
    assert (len(creating.asked), keys_of(store)) == (1, [])


def test_without_a_response_the_log_shows_whether_the_row_was_written(store: Store, creating: Creating) -> None:
    chain(store, 2)

    def answer_lost() -> None:
        write_from_another_process(store, "mine", 2)
        raise ConnectionError("broken off")

    creating.before += [answer_lost]
    assert not_none(append(store, "mine", 2).history.live).number == 3
    creating.before += [ConnectionError("broken off")]
    with pytest.raises(StoreUnreachable, match=r"broken off.*staging\.cnn does not contain the entry now: .*cnn`"):
        append(store, "never", 3)
    assert keys_of(store) == ["k1", "k2", "mine"]


def test_a_store_that_becomes_unreachable_during_a_write_is_reported(
    store: Store, creating: Creating, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops() -> None:
        def broken(*_: Any, **__: Any) -> NoReturn:
            raise ConnectionError("broken off")

        monkeypatch.setattr(store._client, "search_model_versions", broken)

    creating.before += [stops]
    with pytest.raises(
        StoreUnreachable, match=r"while an entry of staging\.cnn was being written: `onward history cnn`"
    ):
        append(store, "k")


def test_an_approval_is_appended_once(store: Store) -> None:
    chain(store, 1)
    found = store.approve("staging", "cnn", approval("a"))
    assert (found.number, found.kind) == (2, "approve")
    assert keys_of(store) == ["k1", "a"]
    assert store.head("staging", "cnn").history.base == 1


def test_a_signature_is_stored_in_the_row_and_the_signer_name_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(store, 2)
    entry = store.entry("staging", "cnn", 1).model_copy(update={"signer": "ann", "signature": "xyz"})
    set_tag = store._client.set_model_version_tag
    names: Any = []
    monkeypatch.setattr(store._client, "set_model_version_tag", lambda *said: names.append(said[2]) or set_tag(*said))
    store.sign("staging", "cnn", entry)
    found = store.entry("staging", "cnn", 1)
    assert (found.signer, found.signature, names) == ("ann", "xyz", ["signature", "signer"])
    assert store.entry("staging", "cnn", 2).signer == ""


# Bringing in the log of another server


def entries(*numbers: int) -> list[Entry]:
    return [Entry(number=number, **draft(f"k{number}", source=f"y{number}").model_dump()) for number in numbers]


def numbers(store: Store) -> tuple[list[int], tuple[int, ...]]:
    log = store.log("staging", "cnn")
    return [entry.number for entry in log.entries()], log.foreign


def test_entries_keep_their_numbers_and_filler_rows_are_not_entries(store: Store, creating: Creating) -> None:
    store.place("staging", "cnn", entries(1, 2, 5))
    assert numbers(store) == ([1, 2, 5], (3, 4))
    for number in (1, 2, 5):
        [wanted] = entries(number)
        found = store.entry("staging", "cnn", number)
        assert (found.model_dump(), found.link) == (wanted.model_dump(), link(wanted, LOG))
        assert "because" in (not_none(store.versions.get(LOG, number)).description or "")
    filler = store.versions.get(LOG, 3)
    assert (not_none(filler).tags, not_none(filler).run_link or "") == ({}, "")
    assert not_none(not_none(filler).description).startswith("Not an entry")
    assert {asked["await_creation_for"] for asked in creating.asked} == {0}
    # What is there already, fillers included, is gone on from.
    store.place("staging", "cnn", entries(6))
    store._client.create_model_version(LOG, source="x")
    store.place("staging", "cnn", entries(8))
    assert numbers(store) == ([1, 2, 5, 6, 8], (3, 4, 7))
    store.clear("staging", "cnn", [1, 2, 3, 7, 9])
    assert numbers(store) == ([1, 2, 5, 6, 8], (4,))
    store.clear("staging", "cnn", [])
    assert numbers(store) == ([1, 2, 5, 6, 8], (4,))


def test_the_first_entry_of_a_log_may_be_a_late_one(store: Store) -> None:
    store.place("staging", "cnn", entries(2))
    assert numbers(store) == ([2], (1,))


def test_a_used_number_is_returned_and_reported(store: Store, creating: Creating) -> None:
    store.place("staging", "cnn", entries(1))
    creating.before += [lambda: write_from_another_process(store, "other")]
    with pytest.raises(LostRace, match=r"staging\.cnn: number 2 is already used, so entry 2 cannot keep its number"):
        store.place("staging", "cnn", entries(2, 3))
    assert keys_of(store) == ["k1", "other"]
    assert numbers(store) == ([1, 2], ())


def test_a_placed_entry_names_the_logged_model_that_holds_its_files(store: Store, creating: Creating) -> None:
    client = store._client
    model = client.create_logged_model(ensure_experiment(client, "onward"), name="m")
    client.finalize_logged_model(model.model_id, "READY")
    [entry] = entries(1)
    store.place("staging", "cnn", [entry.model_copy(update={"source": f"models:/{model.model_id}"})])
    assert [asked["model_id"] for asked in creating.asked] == [model.model_id]


# Registered models, candidates, stages


def test_a_registered_model_is_created_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.prepare("staging", ["cnn", "mlp"]) == ["staging.cnn", "staging.mlp"]
    assert store.prepare("staging", ["cnn", "new"]) == ["staging.new"]
    create = store._client.create_registered_model
    made: Any = []
    monkeypatch.setattr(
        store._client, "create_registered_model", lambda name, **said: made.append(name) or create(name, **said)
    )
    assert store._create(LOG) is False
    assert made == []
    monkeypatch.setattr(store.versions, "named", lambda pattern: [])  # somebody made it just after the look
    assert store._create(LOG) is False
    assert made == [LOG]

    def wrong(name: str, **said: Any) -> NoReturn:
        raise MlflowException("disk", INTERNAL_ERROR)

    monkeypatch.setattr(store._client, "create_registered_model", wrong)
    with pytest.raises(MlflowException, match="disk"):
        store._create(LOG)


def test_a_webhook_is_created_in_this_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ensure", lambda *said: list(said))
    assert store.prepare_webhook("staging", "https://x") == [store._client, "staging", "https://x"]


@pytest.fixture
def candidate(store: Store) -> RegisteredVersion:
    client = store._client
    model = client.create_logged_model(ensure_experiment(client, "onward"), name="m")
    client.finalize_logged_model(model.model_id, "READY")
    store._create("cnn")
    with as_default(client):
        for source in ("x", f"models:/{model.model_id}"):
            client.create_model_version("cnn", source=source)
    return not_none(store.candidate("cnn", 2))


def test_an_interrupted_deletion_of_a_candidate_can_be_repeated(store: Store, candidate: RegisteredVersion) -> None:
    assert candidate.logged_model
    store._client.delete_logged_model(candidate.logged_model)
    store.delete_candidate(candidate)
    purged = dataclasses.replace(not_none(store.candidate("cnn", 1)), logged_model=f"m-{'0' * 32}")
    assert [left.version for left in store.candidates("cnn")] == [1]
    store.delete_candidate(purged)
    assert list(store.candidates("cnn")) == []


def test_deleting_a_candidate_keeps_the_others(store: Store, candidate: RegisteredVersion) -> None:
    store.delete_candidate(candidate)
    assert [left.version for left in store.candidates("cnn")] == [1]


def test_the_logged_model_is_deleted_first_and_other_errors_stop_the_deletion(
    store: Store, candidate: RegisteredVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def wrong(model_id: str) -> NoReturn:
        asked.append(model_id)
        raise MlflowException("disk", INTERNAL_ERROR)

    monkeypatch.setattr(store._client, "delete_logged_model", wrong)
    with pytest.raises(MlflowException, match="disk"):
        store.delete_candidate(candidate)
    assert store.candidate("cnn", 2) == candidate
    store.delete_candidate(not_none(store.candidate("cnn", 1)))  # of no logged model
    assert asked == [candidate.logged_model]
    assert [left.version for left in store.candidates("cnn")] == [2]


def test_the_logged_model_of_a_candidate_is_gone_after_its_deletion(store: Store, candidate: RegisteredVersion) -> None:
    store.delete_candidate(candidate)
    with pytest.raises(MlflowException):
        store._client.get_logged_model(candidate.logged_model)


def test_nothing_is_deleted_in_a_copied_store(
    store: Store, candidate: RegisteredVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(uri: str) -> NoReturn:
        raise UsageError(f"{uri} was moved or copied")

    monkeypatch.setattr(relocate, "require_here", moved)
    with pytest.raises(UsageError, match="was moved or copied"):
        store.delete_candidate(candidate)
    assert len(list(store.candidates("cnn"))) == 2


def test_setting_a_stage_hides_only_its_deprecation_warning(
    store: Store, candidate: RegisteredVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.set_stage("cnn", 2, "Staging")
    assert [found.stage for found in store.candidates("cnn")] == ["Staging", "None"]

    def warn(*_: Any) -> None:
        warnings.warn("something else", UserWarning, stacklevel=1)

    monkeypatch.setattr(store._client, "transition_model_version_stage", warn)
    with pytest.warns(UserWarning, match="something else"):
        store.set_stage("cnn", 2, "Production")


# The views


@pytest.fixture
def deployed(store: Store) -> Store:
    """Version 2 of cnn is live in staging, as entry 1, and no view says so."""
    store._create("cnn")
    for sha256 in (OTHER, SHA, OTHER):
        store._client.create_model_version("cnn", source="x", tags={"sha256": sha256})
    append(store, "k1", candidate_version=2)
    return store


def test_a_repair_writes_missing_aliases_and_rereads_only_after_a_write(
    deployed: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, head, alias = deployed, Store.head, deployed.versions.alias
    looked: Any = []
    asked: Any = []
    monkeypatch.setattr(Store, "head", lambda *said, **more: looked.append(said) or head(*said, **more))
    monkeypatch.setattr(store.versions, "alias", lambda *said: asked.append(said) or alias(*said))
    expected = [Drift(LOG, "live", 1, None), Drift("cnn", "staging", 2, None)]
    log = store.log("staging", "cnn")
    assert store.heal("staging", "cnn", log) == expected
    assert (len(looked), asked) == (1, [(LOG, "live"), ("cnn", "staging")])
    assert store.versions.aliases(LOG) == {"live": 1}
    assert store.versions.aliases("cnn") == {"staging": 2}
    looked.clear()
    asked.clear()
    assert store.heal("staging", "cnn", log) == []
    assert (len(looked), len(asked)) == (0, 2)
    assert store.heal("staging", "cnn") == []
    assert len(looked) == 1


def test_a_stray_alias_is_deleted_and_a_lost_row_is_marked(deployed: Store) -> None:
    store = deployed
    store.heal("staging", "cnn")
    write(store, "lost", 0)
    store._client.delete_model_version("cnn", "2")
    store._client.set_registered_model_alias("cnn", "staging", "1")
    store._client.set_registered_model_alias("cnn", "other", "1")
    assert store.heal("staging", "cnn") == [Drift("cnn", "staging", None, 1), Drift(LOG, "lost", 2, None)]
    assert store.versions.aliases("cnn") == {"other": 1}
    assert store.log("staging", "cnn").marked == {2}
    assert store.heal("staging", "cnn") == []


def test_a_repair_writes_nothing_if_the_log_raises_an_alarm(deployed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = deployed
    log = dataclasses.replace(store.log("staging", "cnn"), alarm=("row 2 is odd",))
    assert store.heal("staging", "cnn", log) == []
    assert store.versions.aliases(LOG) == {}
    # Nor where that comes while the first pass is under way.
    wrote = []

    def overtaken(self: Store, drift: Drift) -> None:
        wrote.append(drift)
        if len(wrote) == 1:
            write(store, "k2", 1, candidate_version=1)
            monkeypatch.setattr(
                Store, "head", lambda *_: dataclasses.replace(store.log("staging", "cnn"), alarm=("row 3 is odd",))
            )

    monkeypatch.setattr(Store, "_write", overtaken)
    assert store.heal("staging", "cnn") == wrote
    assert [drift.wanted for drift in wrote] == [1, 2]


def test_a_repeatedly_overtaken_repair_stops(deployed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store, set_alias, passes = deployed, Store._write, []

    def overtaken(self: Store, drift: Drift) -> None:
        set_alias(self, drift)
        if drift.alias == "live":
            passes.append(drift.wanted)
            write(store, f"later{len(passes)}", len(passes), candidate_version=1)

    monkeypatch.setattr(Store, "_write", overtaken)
    store.heal("staging", "cnn")
    assert passes == [1, 2, 3, 4, 5]


def test_the_live_candidate_is_an_existing_version_with_the_same_bytes(deployed: Store) -> None:
    store = deployed
    log = store.log("staging", "cnn")
    assert store.live_candidate("cnn", log) == 2
    assert store.live_candidate("cnn", store.log("production", "cnn")) is None
    assert store.live_candidate("other", log) is None
    append(store, "k2", 1, candidate_version=3)  # which has other bytes by now
    assert store.live_candidate("cnn", store.log("staging", "cnn")) is None


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        ("(sqlite3.IntegrityError) x", True), ("psycopg2.errors.UniqueViolation x", True),
        ("UNIQUE constraint failed: x", True), ("sqlalchemy.orm.exc.StaleDataError x", True), ("disk", False),
    ],
)  # fmt: skip
def test_an_alias_written_by_another_process_is_read_again(
    deployed: Store, monkeypatch: pytest.MonkeyPatch, error: str, passes: int
) -> None:
    store = deployed

    def first(*_: Any) -> NoReturn:
        raise MlflowException(error)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(store._client._get_registry_client(), "set_registered_model_alias", first)  # type: ignore[no-untyped-call]
        meanwhile.setattr(store._client, "set_model_version_tag", first)
        for write_view in (lambda: store.heal("staging", "cnn"), lambda: store._mark(LOG, 1)):
            if passes:
                write_view()
            else:
                with pytest.raises(MlflowException, match="disk"):
                    write_view()
    assert store.versions.aliases(LOG) == {}
    store.heal("staging", "cnn")
    assert store.versions.aliases(LOG) == {"live": 1}


def test_a_log_hidden_by_mlflow_is_not_read_as_empty(store: Store) -> None:
    chain(store, 1)
    store.tag(LOG, 1, "mlflow.prompt.is_prompt", "true")
    with pytest.raises(Refused, match="MLflow hides the versions"):
        store.log("staging", "cnn")
