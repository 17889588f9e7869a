"""The steps of promotion, rollback and reconciliation on a real log with fake files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from onward.registry.artifact.manifest import write_manifest
from onward.registry.errors import LostRace, MachineFault, Refused, StoreUnreachable, UsageError
from onward.registry.gates import policy, signed_files
from onward.registry.log.entries import Entry, GateResult
from onward.registry.operations import notification, promotion
from onward.registry.operations.choice import Deployable
from onward.registry.operations.promotion import Outcome, create_environments, promote, reconcile, rollback
from onward.registry.store import stage_mirror
from onward.registry.store.artifacts import Found
from onward.registry.store.stage_mirror import StageDrift
from onward.registry.store.store import Store
from onward.registry.trust import entry_signatures
from tests.conftest import not_none
from tests.store_factory import GOOD, fresh_store

SHA = {version: str(version) * 64 for version in range(1, 10)}
ADDRESS = "https://hooks.example.org/x"


class Shelf:
    """Fake files of a store.

    `own` are copies by environment, model and sha256; `lost` are sources without files. Other fields record calls.
    """

    def __init__(self) -> None:
        self.own: dict[tuple[str, str, str], list[str]] = {}
        self.lost: set[str] = set()
        self.tried: list[str] = []
        self.kept: list[tuple[str, str, str, str]] = []
        self.gates: list[tuple[Any, ...]] = []
        self.folders: list[Path] = []
        self.made: list[str] = []

    def own_copies(self, environment: str, model: str, sha256: str) -> list[str]:
        return self.own.get((environment, model, sha256), [])

    def obtain(self, places: list[str], wanted: Any, folder: Path) -> Found:
        assert folder.parent.is_dir()
        assert folder.parent.name.startswith("onward-")  # leftovers of a killed process are recognized by name
        assert not folder.exists()
        folder.mkdir()
        self.folders.append(folder)
        self.tried = []
        for place in places:
            self.tried.append(place)
            if place not in self.lost:
                (folder / "model.onnx").write_text(wanted.sha256)
                write_manifest(folder)
                return Found(place, folder, [])
        raise Refused("the files are nowhere")

    def copy_of(self, environment: str, model: str, entry: Entry, folder: Path) -> Found:
        return self.obtain([entry.source, *self.own_copies(environment, model, entry.sha256)], entry, folder)

    def keep(self, environment: str, model: str, sha256: str, folder: Path, scratch: Path) -> str:
        assert (folder / "model.onnx").read_text() == sha256
        assert scratch.parent == folder.parent
        assert not scratch.exists()
        source = f"copy-{len(self.kept) + 1}"
        self.kept.append((environment, model, sha256, self.tried[-1]))
        self.own[environment, model, sha256] = [source, *self.own_copies(environment, model, sha256)]
        return source

    def keep_gates(self, *said: Any) -> str:
        self.gates.append(said)
        return "the run"

    def prepare(self, environment: str) -> list[str]:
        self.made.append(environment)
        return [f"files of {environment}"]


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    found = Shelf()
    monkeypatch.setattr(Store, "files", found)
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> Store:
    """Versions 1, 2 and 3 of cnn, and two environments without requirements, one after the other."""
    store = fresh_store(tmp_path, monkeypatch)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    environments(staging={}, production={"from": "staging"})
    candidates(store, "cnn", 1, 2, 3)
    return store


def environments(**said: dict[str, Any]) -> None:
    """Write params.yaml with these environments."""
    section = {name: {"from": "candidate", "require": [], **options} for name, options in said.items()}
    Path("params.yaml").write_text(yaml.safe_dump({"environments": section}, sort_keys=False))


def candidates(store: Store, model: str, *versions: int, **tags: str) -> None:
    store._create(model)
    for version in versions:
        known = {**GOOD, "sha256": SHA[version], "published_by": "ann", **tags}
        store._client.create_model_version(model, source="x", tags=known)


def deploy(store: Store, *versions: int, **options: Any) -> Outcome:
    outcomes = [promote("cnn", "staging", version, reason="because", store=store, **options) for version in versions]
    return outcomes[-1]


def rows(store: Store, environment: str = "staging") -> list[Entry]:
    return store.log(environment, "cnn").entries()


# The store


def test_only_create_environments_may_create_a_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = []
    cases: tuple[tuple[dict[str, Any], list[bool]], ...]
    cases = (({"store": store}, []), ({}, [False, False, False, True]))
    monkeypatch.setattr(promotion, "Store", lambda create=True: made.append(create) or store)
    for given, expected in cases:
        made.clear()
        for version in (1, 2):
            deploy(store, version)
        promote("cnn", "staging", 3, reason="x", **given)
        assert rollback("cnn", "staging", reason="x", **given).version == 2
        assert reconcile(**given) == []
        create_environments(["other"], **given)
        assert made == expected


def test_an_outcome_is_not_a_dry_run_by_default() -> None:
    done = Outcome("cnn", "staging", 1, SHA[1], True)
    assert (done.dry_run, done.entry, done.gates, done.note) == (False, None, (), "")


@pytest.mark.parametrize("change", [promote, rollback])
def test_names_and_reasons_are_checked_before_reading_the_log(change: Callable[..., Outcome]) -> None:
    def asked(*_: Any) -> Any:
        raise AssertionError("the store was asked")

    nothing = SimpleNamespace(head=asked)
    for model, environment, reason, message in (
        ("../cnn", "staging", "x", "is not a valid name for a model"),
        ("cnn", "moon", "x", "no environment 'moon'"),
        ("cnn", "staging", " ", "--reason: is empty: say why"),
    ):
        with pytest.raises(UsageError, match=message):
            change(model, environment, reason=reason, store=nothing)


def test_a_reason_is_kept_in_one_line(store: Store) -> None:
    promote("cnn", "staging", 1, reason=" a\n b ", store=store)
    promote("cnn", "staging", 2, reason="x", store=store)
    rollback("cnn", "staging", reason=" c\n d ", store=store)
    assert [entry.reason for entry in rows(store)] == ["a b", "x", "c d"]


@pytest.mark.parametrize("change", [promote, rollback])
def test_a_row_of_a_newer_onward_blocks_a_change(store: Store, change: Callable[..., Outcome]) -> None:
    store._create("staging.cnn")
    store._client.create_model_version("staging.cnn", source="x", tags={"schema": "9"})
    with pytest.raises(UsageError, match=r"staging\.cnn: entry 1 was written by a newer Onward"):
        change("cnn", "staging", reason="x", store=store)


# Promotion


def test_a_promotion_copies_the_files_and_appends_an_entry(store: Store, shelf: Shelf) -> None:
    done = deploy(store, 1)
    [entry] = rows(store)
    assert (done.changed, done.dry_run, done.entry, done.version, done.note) == (True, False, entry, 1, "")
    assert shelf.kept == [("staging", "cnn", SHA[1], "models:/cnn/1")]
    assert (entry.source, entry.gates_run, shelf.gates) == ("copy-1", "", [])
    assert len(entry.manifest) == 64
    assert not shelf.folders[0].exists()
    assert store.versions.aliases("cnn") == {"staging": 1}


def test_the_copy_of_an_environment_is_created_once(store: Store, shelf: Shelf) -> None:
    deploy(store, 1, 2, 1)
    assert [entry.source for entry in rows(store)] == ["copy-1", "copy-2", "copy-1"]
    assert len(shelf.kept) == 2


def test_suite_results_are_stored_before_the_entry_that_references_them(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, pages = GateResult(requirement="suite", met=True, detail="fine"), {"gates/ours.json": "<p>"}
    monkeypatch.setattr(promotion, "judge", lambda *_: ((result,), pages))
    done = deploy(store, 1)
    assert shelf.gates == [("staging", "cnn", (result,), pages)]
    assert (not_none(done.entry).gates_run, done.gates, not_none(done.entry).gates) == ("the run", (result,), (result,))


def test_force_does_not_skip_a_second_signer(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments(staging={"four_eyes": True, "require": ["data"]})
    with pytest.raises(Refused, match="four_eyes"):
        deploy(store, 1)
    assert not_none(deploy(store, 1, force=True).entry).forced
    keys = {name: entry_signatures.create_key(tmp_path / f"{name}.pem") for name in ("ann", "bob")}
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / "ann.pem"))
    environments(staging={"four_eyes": True, "signers": keys})
    for dry_run in (False, True):
        with pytest.raises(Refused, match="four_eyes"):
            deploy(store, 2, force=True, dry_run=dry_run)
    assert len(rows(store)) == 1


def test_an_unmet_gate_stops_a_promotion_without_force(store: Store, shelf: Shelf) -> None:
    environments(staging={"require": ["data"]})
    candidates(store, "cnn", 4, data="failed")
    for options in ({}, {"dry_run": True}):
        with pytest.raises(
            Refused, match=r"does not meet the requirements of staging; nothing was changed:\n  data: failed"
        ):
            deploy(store, 4, **options)
    assert (rows(store), shelf.kept) == ([], [])
    done = deploy(store, 4, force=True, dry_run=True)
    assert (done.changed, done.dry_run, done.entry, [gate.met for gate in done.gates]) == (False, True, None, [False])
    assert (rows(store), shelf.kept) == ([], [])
    assert not_none(deploy(store, 4, force=True).entry).forced
    assert not not_none(deploy(store, 1, force=True).entry).forced


def test_two_attempts_have_two_keys_and_the_second_names_the_first_as_its_base(store: Store) -> None:
    deploy(store, 1, 2)
    first, second = rows(store)
    assert (first.base, second.base, first.restores) == (0, 1, 0)
    assert first.key != second.key


# What stays


def test_promoting_the_live_version_restores_its_aliases_and_files(store: Store, shelf: Shelf) -> None:
    first = deploy(store, 1)
    same = dataclasses.replace(first, changed=False)
    acts: list[Callable[[], Outcome]] = [
        lambda: deploy(store, 1),
        lambda: rollback("cnn", "staging", reason="x", to=1, store=store),
    ]
    for act in acts:
        store._client.delete_registered_model_alias("cnn", "staging")
        assert act() == same
        assert store.versions.aliases("cnn") == {"staging": 1}
        own = shelf.own_copies("staging", "cnn", SHA[1])
        shelf.lost |= set(own)
        store._client.delete_registered_model_alias("cnn", "staging")
        done = act()
        assert done.note.startswith("staging had lost its copy, which was restored from models:/cnn/1 (")
        assert dataclasses.replace(done, note="") == same
        assert shelf.own_copies("staging", "cnn", SHA[1])[1:] == own
        assert shelf.kept[-1] == ("staging", "cnn", SHA[1], "models:/cnn/1")
        assert store.versions.aliases("cnn") == {"staging": 1}
    assert len(rows(store)) == 1
    assert not any(folder.exists() for folder in shelf.folders)


def test_a_dry_run_of_the_live_version_changes_nothing(store: Store, shelf: Shelf) -> None:
    first = deploy(store, 1)
    store._client.delete_registered_model_alias("cnn", "staging")
    shelf.folders.clear()
    assert deploy(store, 1, dry_run=True) == dataclasses.replace(first, changed=False, dry_run=True)
    assert (store.versions.aliases("cnn"), shelf.folders) == ({}, [])


def test_if_all_copies_of_the_live_version_are_lost_the_error_names_it(store: Store, shelf: Shelf) -> None:
    deploy(store, 1)
    shelf.lost |= {"copy-1", "models:/cnn/1"}
    acts: list[Callable[[], Outcome]] = [
        lambda: deploy(store, 1),
        lambda: rollback("cnn", "staging", reason="x", to=1, store=store),
    ]
    for act in acts:
        with pytest.raises(Refused, match=r"^cnn version 1, which is live: the files are nowhere"):
            act()
    with pytest.raises(Refused, match=r"^cnn version 1: the files are nowhere"):
        promote("cnn", "production", reason="x", store=store)
    deploy(store, 2)
    with pytest.raises(Refused, match=r"^cnn as deployed by entry 1: the files are nowhere"):
        rollback("cnn", "staging", reason="x", store=store)


def test_file_signatures_are_checked_whenever_files_are_used(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def unsigned(folder: Path, evidence: Any, environment: str) -> Any:
        asked.append((evidence["sha256"], environment))
        assert (folder / "model.onnx").is_file()
        raise Refused("the files are not signed")

    deploy(store, 1, 2)
    monkeypatch.setattr(signed_files, "require", unsigned)
    shelf.lost |= {"copy-2"}
    cases: tuple[tuple[Callable[[], Outcome], int, str], ...] = (
        (lambda: deploy(store, 3), 3, "cnn version 3: the files are not signed"),
        (lambda: deploy(store, 2), 2, "cnn version 2, which is live: the files are not signed"),
        (lambda: rollback("cnn", "staging", reason="x", store=store), 1, "cnn as deployed by entry 1: the files"),
    )
    for act, version, message in cases:
        with pytest.raises(Refused, match=f"^{message}"):
            act()
        assert asked.pop() == (SHA[version], "staging")
    assert len(rows(store)) == 2


# Where files may be


def places(store: Store, wanted: Deployable | Entry, origin: str) -> list[str]:
    return list(promotion._places(store, "cnn", "production", wanted, origin))


def test_all_places_of_files_are_tried_from_best_to_worst(store: Store, shelf: Shelf) -> None:
    candidates(store, "cnn", 1)  # version 4 has the bytes of version 1
    shelf.own = {("production", "cnn", SHA[1]): ["own"], ("staging", "cnn", SHA[1]): ["before"]}
    chosen = Deployable(1, SHA[1], "", "named", {})
    shelf.own["candidate", "cnn", SHA[1]] = ["no environment's"]
    same = ["models:/cnn/4", "models:/cnn/1"]
    assert places(store, chosen, "staging") == ["own", "named", "before", *same]
    assert places(store, chosen, "candidate") == ["own", "named", *same]
    deploy(store, 1)
    [entry] = rows(store)
    entry = entry.model_copy(update={"source": "named"})
    assert places(store, entry, "staging") == ["named", "own", "named", "before", *same]


def test_later_places_are_searched_only_when_needed(shelf: Shelf) -> None:
    deployed = Deployable(1, SHA[1], "", "named", {})
    store: Any = SimpleNamespace(files=shelf)
    found = promotion._places(store, "cnn", "production", deployed, "staging")
    assert next(found) == "named"


# Rollback


def test_a_rollback_reads_back_to_the_requested_entry(store: Store) -> None:
    deploy(store, *(1, 2) * 4)
    done = rollback("cnn", "staging", reason="no", to=1, actor="bob", store=store)
    entry = rows(store)[-1]
    assert done == Outcome("cnn", "staging", 1, SHA[1], True, False, entry, (), "")
    assert (entry.kind, entry.base, entry.restores, entry.actor, entry.source) == ("rollback", 8, 1, "bob", "copy-1")
    assert entry.manifest == rows(store)[0].manifest
    again = rollback("cnn", "staging", reason="no", to=1, store=store)
    assert again == dataclasses.replace(done, changed=False)
    with pytest.raises(UsageError, match=r"^staging\.cnn: there is no entry 70"):
        rollback("cnn", "staging", reason="no", to=70, store=store)


def test_a_rollback_without_a_number_restores_the_previous_version(store: Store, shelf: Shelf) -> None:
    deploy(store, 1, 2, 3)
    assert [rollback("cnn", "staging", reason="no", store=store).version for _ in range(2)] == [2, 1]
    with pytest.raises(Refused, match=r"^staging\.cnn: there is nothing to roll back to"):
        rollback("cnn", "staging", reason="no", store=store)
    assert len(shelf.kept) == 3
    shelf.lost |= {"copy-3"}
    assert not_none(rollback("cnn", "staging", reason="no", to=3, store=store).entry).source == "copy-4"


def test_an_entry_is_not_earlier_than_the_previous_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(promotion, "now", lambda: "2026-01-02T03:04:05+00:00")
    for before, after in (
        ("2026-01-02T01:04:05-02:00", "2026-01-02T03:04:05+00:00"),
        ("2026-01-02T01:04:06-02:00", "2026-01-02T01:04:06-02:00"),
        ("2026-01-02T01:04:04-02:00", "2026-01-02T03:04:05+00:00"),
    ):
        entry: Any = SimpleNamespace(at=before)
        assert promotion._after(entry) == after
    assert promotion._after(None) == "2026-01-02T03:04:05+00:00"


def test_times_have_no_fractions_of_seconds() -> None:
    assert datetime.fromisoformat(promotion.now()).microsecond == 0
    assert datetime.fromisoformat(promotion.now()).tzinfo == UTC


# The entry, its views and its hook


def signed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Staging takes what ann and bob signed; ann signs."""
    keys = {name: entry_signatures.create_key(tmp_path / f"{name}.pem") for name in ("ann", "bob")}
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / "ann.pem"))
    environments(staging={"signers": keys})


def before_the_entry(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Let something happen between the look at the log and the entry, once."""
    append = Store.append

    def late(self: Any, *said: Any) -> Any:
        monkeypatch.setattr(Store, "append", append)
        happens()
        return append(self, *said)

    monkeypatch.setattr(Store, "append", late)


def test_an_unsigned_row_does_not_block_a_signer(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed(store, tmp_path, monkeypatch)
    unsigned = not_none(deploy(store, 1).entry).model_copy(
        update={"key": "by hand", "base": 1, "signature": "", "signer": ""}
    )
    before_the_entry(monkeypatch, lambda: store._try_append("staging.cnn", unsigned))
    done = deploy(store, 2, actor="eve")
    first, by_hand, undecided, counted = rows(store)
    assert (done.entry, done.changed, done.note) == (counted, True, "")
    assert (first.candidate_version, by_hand.key) == (1, "by hand")
    assert undecided.key != counted.key
    assert (undecided.seen, counted.seen) == (1, 3)
    assert (counted.base, counted.signer, counted.actor) == (1, "ann", "ann")
    assert store.head("staging", "cnn").history.live == counted


@pytest.mark.parametrize("with_signers", [True, False])
def test_an_overtaken_promotion_is_not_retried(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_signers: bool
) -> None:
    if with_signers:
        signed(store, tmp_path, monkeypatch)
    deploy(store, 1)
    before_the_entry(monkeypatch, lambda: deploy(store, 3))
    with pytest.raises(LostRace, match=r"Live now: entry 2, ann promoted version 3"):
        deploy(store, 2)
    assert [entry.candidate_version for entry in rows(store)] == [1, 3, 2]


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (StoreUnreachable("gone"), "the entry counts, but the aliases could not be written: run `onward"),
        (MachineFault("disk full"), "the entry counts, but the aliases could not be written: run `onward"),
        (Refused("not allowed"), "the entry counts, but not all aliases could be written: not allowed"),
    ],
)
@pytest.mark.parametrize("view", ["aliases", "stages"])
def test_unwritable_aliases_are_reported_in_a_note(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, note: str, view: str
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as meanwhile:
        if view == "aliases":
            meanwhile.setattr(Store, "heal", fails)
        else:
            meanwhile.setattr(stage_mirror, "mirror", fails)
        done = deploy(store, 1)
        assert (done.changed, done.entry) == (True, rows(store)[0])
        assert done.note.startswith(note)
        assert deploy(store, 1).note.startswith(note)
    assert deploy(store, 1).note == ""


def test_aliases_follow_the_log_just_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: Any = []
    monkeypatch.setattr(Store, "heal", lambda *said: given.append(said[1:]) or [])
    entry = deploy(store, 1).entry
    deploy(store, 1)
    reconcile(store)
    assert [said[:2] for said in given] == [("staging", "cnn")] * 3
    assert [said[2].history.live for said in given] == [entry] * 3


def test_aliases_and_stages_are_written_from_the_given_log(monkeypatch: pytest.MonkeyPatch) -> None:
    written: Any = []
    rules = policy.parse(None)
    monkeypatch.setattr(stage_mirror, "mirror", lambda *said: written.append(said))
    store: Any = SimpleNamespace(heal=lambda *said: written.append(said))
    log: Any = object()
    assert promotion._heal(store, rules, "cnn", "staging", log) == ""
    assert written == [("staging", "cnn", log), (store, rules, "cnn")]


def test_the_hook_of_the_environment_receives_the_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    environments(staging={"notify": {"command": ["true"]}}, other={})
    told: Any = []
    monkeypatch.setattr(notification, "announce", lambda hook, *said: told.append((hook.command, *said)) or "it failed")
    done = deploy(store, 1)
    assert told == [(["true"], "cnn", "staging", done.entry)]
    assert done.note == "it failed"
    assert deploy(store, 1).note == ""  # no entry, nothing to tell
    promote("cnn", "other", 1, reason="x", store=store)
    assert len(told) == 1


def test_with_signers_the_author_is_the_owner_of_the_key(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(store, tmp_path, monkeypatch)
    name, key = promotion.author(policy.read()["staging"], "staging", "eve")
    assert (name, not_none(key).name) == ("ann", "ann")
    monkeypatch.delenv("ONWARD_SIGNING_KEY")
    with pytest.raises(Refused, match="staging"):
        promotion.author(policy.read()["staging"], "staging", "eve")


# Reconciliation and preparation


def test_reconcile_mirrors_stages_of_every_model_whose_logs_can_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates(store, "mlp", 1)
    candidates(store, "newer", 1)
    for name in ("staging.a b", "staging.newer"):
        store._create(name)
    store._client.create_model_version("staging.newer", source="x", tags={"schema": "9"})
    deploy(store, 1)
    asked = []

    def mirrored(given: Any, rules: Any, model: str) -> Any:
        assert (given, list(rules)) == (store, ["staging", "production"])
        asked.append(model)
        return [StageDrift(model, 1, "Staging", "None")]

    monkeypatch.setattr(stage_mirror, "mirror", mirrored)
    with pytest.raises(Refused, match=r"staging\.newer: entry 1 was written by a newer") as refused:
        reconcile(store)
    assert asked == ["cnn", "mlp"]
    assert str(refused.value).count("corrected in other logs") == 2
    store._client.delete_registered_model("staging.newer")
    assert [getattr(drift, "model", None) for drift in reconcile(store)] == ["cnn", "mlp", "newer"]


def test_reconcile_skips_a_log_with_an_alarm(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed(store, tmp_path, monkeypatch)
    deploy(store, 1)
    store._client.create_model_version("staging.cnn", source="x")
    store._client.delete_registered_model_alias("cnn", "staging")
    with pytest.raises(Refused, match=r"look at `onward history`:\n  staging\.cnn: row 2 is not an entry of Onward's$"):
        reconcile(store)
    assert store.versions.aliases("cnn") == {}


def test_reconcile_keeps_aliases_of_models_never_deployed(store: Store) -> None:
    store._client.set_registered_model_alias("cnn", "production", "1")
    store._client.create_registered_model("production.cnn")
    assert reconcile(store) == []
    assert store.versions.aliases("cnn") == {"production": 1}


def test_an_interrupted_reconciliation_reports_its_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates(store, "mlp", 1)
    for model in ("cnn", "mlp"):
        promote(model, "staging", 1, reason="x", store=store)
        store._client.delete_registered_model_alias(model, "staging")
    heal = Store.heal

    def breaks_off(self: Any, environment: str, model: str, log: Any) -> Any:
        if model == "mlp":
            raise StoreUnreachable("broken off")
        return heal(self, environment, model, log)

    monkeypatch.setattr(Store, "heal", breaks_off)
    with pytest.raises(StoreUnreachable, match=r"broken off\. Corrected before that: the alias staging of cnn"):
        reconcile(store)


def test_create_environments_creates_webhooks_and_errors_report_what_was_created(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", ADDRESS)
    environments(staging={"notify": {"server_webhook": "$HOOK"}}, plain={}, other={"notify": {"command": ["true"]}})
    asked = []

    def webhook(self: Any, environment: str, address: str) -> Any:
        asked.append((environment, address))
        return [f"webhook of {environment}"]

    monkeypatch.setattr(Store, "prepare_webhook", webhook)
    assert create_environments(["cnn"], store) == [
        "files of staging", "staging.cnn", "webhook of staging", "files of plain", "plain.cnn", "files of other",
        "other.cnn",
    ]  # fmt: skip
    assert asked == [("staging", ADDRESS)]

    def refused(self: Any, environment: str, address: str) -> Any:
        raise Refused("no")

    monkeypatch.setattr(Store, "prepare_webhook", refused)
    with pytest.raises(Refused, match=r"Created before that: files of staging, staging\.mlp\. Run the command again"):
        create_environments(["mlp"], store)
