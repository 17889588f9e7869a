"""Signed entries, approvals and four eyes, in environments with and without signers."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from onward.registry.errors import Refused, UsageError
from onward.registry.gates import policy
from onward.registry.gates.four_eyes import judge
from onward.registry.inference.session import InferenceSession, UnprovenLog
from onward.registry.operations import approval as approvals
from onward.registry.operations import overview, promotion, transfer
from onward.registry.operations.promotion import Outcome
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store
from onward.registry.trust import entry_signatures
from onward.registry.trust.entry_signatures import Signer
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = fresh_store(tmp_path, monkeypatch)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor, published_by="ann")
    return store


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """The public keys of ann and bob; the private keys are files."""
    return {name: entry_signatures.create_key(tmp_path / f"{name}.pem") for name in ("ann", "bob")}


@pytest.fixture
def be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that changes the actor and the signing key."""

    def become(name: str) -> None:
        monkeypatch.setenv("ONWARD_ACTOR", name)
        monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / f"{name}.pem"))

    become("ann")
    return become


@pytest.fixture
def environment(tmp_path: Path) -> Callable[..., None]:
    """Return a function that writes the policy of staging."""

    def write(**options: Any) -> None:
        section = {"staging": {"from": "candidate", "require": [], **options}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"environments": section}))

    return write


def promote(store: Store, version: int, **options: Any) -> Outcome:
    return promotion.promote("cnn", "staging", version, reason="because", store=store, **options)


def live(store: Store) -> int | None:
    entry = store.head("staging", "cnn").history.live
    assert entry == store.log("staging", "cnn").history.live
    return entry.candidate_version if entry else None


def append_by_hand(store: Store, base: int, version: int = 3, **changes: Any) -> None:
    """Append an unsigned entry, as a user with EDIT permission and a script can."""
    draft = (
        store.log("staging", "cnn")
        .entries()[0]
        .model_copy(update={"key": "by hand", "base": base, "candidate_version": version, "actor": "bob", **changes})
    )
    store._try_append("staging.cnn", draft)


def test_only_entries_of_signers_count(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(signers=keys)
    assert not_none(promote(store, 1).entry).signer == "ann"
    append_by_hand(store, base=1, signer="", signature="")
    assert live(store) == 1
    be("bob")
    assert promote(store, 2, dry_run=True).gates[-1].met  # an unsigned row is reported and blocks no action
    append_by_hand(store, base=1)  # the signature of ann with other fields
    assert live(store) == 1
    assert [entry.number for entry in store.log("staging", "cnn").unproven] == [2, 3]
    with pytest.raises(Refused, match=r"log: row 2 is not signed by any of the signers.*; row 3 is not .*--force"):
        promote(store, 2)
    assert not_none(promote(store, 2, force=True).entry).base == 1
    assert store.head("staging", "cnn").alarm == ()
    assert live(store) == 2
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1
    assert store.versions.aliases("staging.cnn") == {"live": 5}


def test_a_signature_covers_every_field_of_an_entry(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(signers=keys)
    entry = not_none(promote(store, 1).entry)
    signers = policy.read()["staging"].signers
    assert entry_signatures.proven(entry, "staging.cnn", signers)
    changes: tuple[dict[str, Any], ...] = (
        {"base": 7}, {"sha256": "0" * 64}, {"candidate_version": 2}, {"actor": "bob"}, {"reason": "other"},
        {"at": "2030-01-01T00:00:00+00:00"}, {"forced": True}, {"evidence": {}}, {"signer": "bob"}, {"key": "other"},
        {"kind": "approve"}, {"restores": 1}, {"gates_run": "other"}, {"signature": "bm9uZQ=="}, {"signature": "!"},
        {"manifest": "0" * 64}, {"manifest": ""}, {"seen": 7}, {"seen_digest": "0" * 64}, {"base_digest": "0" * 64},
    )  # fmt: skip
    for change in changes:
        assert not entry_signatures.proven(entry.model_copy(update=change), "staging.cnn", signers), change
    assert not entry_signatures.proven(entry, "production.cnn", signers)
    elsewhere = {"number": 9, "source": "models:/m-elsewhere"}
    assert entry_signatures.proven(entry.model_copy(update=elsewhere), "staging.cnn", signers)


def test_a_user_without_a_signer_key_is_rejected_before_any_change(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(signers=keys)
    entry_signatures.create_key(tmp_path / "eve.pem")
    be("eve")
    with pytest.raises(Refused, match=r"only entries signed by ann, bob, but the key in .*eve\.pem belongs to none"):
        promote(store, 1, force=True)
    monkeypatch.delenv("ONWARD_SIGNING_KEY")
    with pytest.raises(Refused, match="set ONWARD_SIGNING_KEY"):
        promotion.rollback("cnn", "staging", reason="because", store=store)
    (tmp_path / "no.pem").write_text("no key")
    be("no")
    with pytest.raises(UsageError, match=r"no\.pem contains no Ed25519 key"):
        promote(store, 1)
    assert store.log("staging", "cnn").entries() == []


def test_an_unsigned_history_counts_once_a_signer_has_signed_it(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment()
    for version in (1, 2):
        promote(store, version)
    environment(signers=keys)
    assert live(store) is None
    with pytest.raises(Refused, match=r"nothing is live in staging of cnn \(2 entries do not count: no signer"):
        resolve("cnn@staging", store)
    assert "ALARM: row 2 is not signed by any of the signers" in onward("status")[1]
    assert onward("sign", "cnn", "--env", "staging", "--dry-run")[1].startswith("would sign entry 1: ann promoted")
    assert live(store) is None
    code, out, _ = onward("sign", "cnn", "--env", "staging", "--json")
    assert code == 0
    assert [entry["number"] for entry in json.loads(out)["signed"]] == [1, 2]
    assert live(store) == 2
    assert onward("sign", "cnn", "--env", "staging")[1] == "No entry needs a signature.\n"
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1


def test_a_host_without_a_checkout_reads_the_signers_from_a_file(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(signers=keys)
    promote(store, 1)
    append_by_hand(store, base=1, signature="", signer="")
    host = tmp_path / "host"
    host.mkdir()
    (tmp_path / "params.yaml").rename(host / "signers.yaml")
    (tmp_path / "dvc.yaml").unlink()
    monkeypatch.chdir(host)
    assert not_none(store.head("staging", "cnn").history.live).number == 2  # without signers every entry counts
    monkeypatch.setenv("ONWARD_PARAMS", str(host / "signers.yaml"))
    with pytest.warns(UnprovenLog, match="row 2 is not signed"):
        assert InferenceSession("cnn@staging").metadata.entry == 1
    monkeypatch.setenv("ONWARD_PARAMS", str(host / "nowhere.yaml"))
    with pytest.raises(UsageError, match=r"ONWARD_PARAMS: .*nowhere\.yaml cannot be read"):
        resolve("cnn@staging", store)


def test_without_signers_four_eyes_compares_unproven_names(
    store: Store, be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(four_eyes=True)
    with pytest.raises(Refused, match=r"ann published it and ann promotes it: .*`onward approve cnn 1 --env staging`"):
        promote(store, 1)
    be("bob")
    [gate] = promote(store, 1).gates
    assert gate.detail == "published by ann, promoted by bob (advice: without `signers`, names are not verified)"
    be("ann")
    approvals.approve("cnn", 2, "staging", reason="my own", store=store)
    with pytest.raises(Refused, match="somebody else has to approve it first"):
        promote(store, 2)
    be("bob")
    approval, note = approvals.approve("cnn", 2, "staging", reason="looked at its misses", store=store)
    assert (approval.kind, note) == ("approve", "")
    assert str(approval).startswith("bob approved version 2 (sha256 ")
    be("ann")
    assert promote(store, 2).gates[0].detail.startswith("approved by bob (advice")
    assert not_none(promote(store, 3, force=True).entry).forced
    assert live(store) == 3


def test_with_signers_a_second_key_must_approve_even_with_force(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(four_eyes=True, signers=keys)
    be("bob")
    with pytest.raises(Refused, match="bob promotes it: somebody else has to approve"):
        promote(store, 1, force=True)
    approvals.approve("cnn", 1, "staging", reason="my own", store=store)
    forged = store.log("staging", "cnn").approvals[0].model_copy(update={"signer": "ann", "actor": "ann", "key": "x"})
    store._try_append("staging.cnn", forged)
    with pytest.raises(Refused, match="somebody else has to approve"):
        promote(store, 1)
    be("ann")  # the publisher is a tag that every user may write
    approvals.approve("cnn", 1, "staging", reason="fine", store=store)
    be("bob")
    with pytest.raises(Refused, match="somebody else has to approve"):
        promote(store, 1)
    keys["carl"] = entry_signatures.create_key(store_path(store) / "carl.pem")
    environment(four_eyes=True, signers=keys)
    be("carl")
    approvals.approve("cnn", 1, "staging", reason="fine", store=store)
    be("bob")
    assert promote(store, 1).gates[0].detail == "approved by carl"
    assert live(store) == 1


def store_path(store: Store) -> Path:
    from pathlib import Path

    return Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")).parent


def test_an_approval_changes_neither_the_live_version_nor_the_rollback_order(
    store: Store, be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(four_eyes=True)
    be("bob")
    promote(store, 1)
    code, out, err = onward("approve", "cnn", "2", "--env", "staging", "--reason", "fine", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["number"] == 2
    assert live(store) == 1
    promote(store, 2)
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1
    states = [line["kind"] for line in json.loads(onward("history", "cnn", "--json")[1])["staging"]]
    assert states == ["promote", "approve", "promote", "rollback"]
    assert overview.status(store)[0].environments[0].drift == ()


def test_signatures_and_approvals_move_to_another_server(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(four_eyes=True, signers={**keys, "carl": entry_signatures.create_key(tmp_path / "carl.pem")})
    be("carl")
    approvals.approve("cnn", 1, "staging", reason="fine", store=store)
    approvals.approve("cnn", 3, "staging", reason="deployed nowhere", store=store)
    be("bob")
    promote(store, 1)
    lines = transfer.export(["cnn"], tmp_path / "files", store)
    (tmp_path / "cnn.jsonl").write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    (tmp_path / "new").mkdir()
    new = fresh_store(tmp_path / "new", monkeypatch)
    monkeypatch.chdir(tmp_path)
    for added in (3, 0):
        [imported] = transfer.import_(tmp_path / "cnn.jsonl", tmp_path / "files", new)
        assert (imported.added, imported.present) == (added, 3 - added)
    log = new.log("staging", "cnn")
    assert (not_none(log.history.live).signer, len(log.approvals), log.unproven) == ("bob", 2, ())
    assert InferenceSession("cnn@staging").metadata.entry == 3


def test_a_created_key_is_private_and_never_overwritten(
    tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONWARD_ACTOR", "ann@example.org")
    file = tmp_path / "ann.pem"
    code, out, _ = onward("keys", "create", str(file))
    assert code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    line = next(line for line in out.splitlines() if "signers:" in line)
    parsed = policy.parse({"staging": {"from": "candidate", "require": [], **yaml.safe_load(line)}})
    assert list(parsed["staging"].signers) == ["ann@example.org"]
    before = file.read_bytes()
    code, _, err = onward("keys", "create", str(file))
    assert (code, file.read_bytes()) == (2, before)
    assert "never overwritten" in err


@pytest.mark.parametrize("key", ["", "short", "!" * 44])
def test_a_signer_without_a_key_is_rejected_with_its_path(key: str) -> None:
    with pytest.raises(UsageError, match=r"environments\.staging\.signers\.ann: not a public key"):
        policy.parse({"staging": {"from": "candidate", "require": [], "signers": {"ann": key}}})


@pytest.mark.parametrize("signers", [{}, {"bob": Signer(key="")}])
def test_with_an_unknown_publisher_another_person_must_approve(signers: dict[str, Signer]) -> None:
    assert not judge("", "bob", [], signers, "2026-01-02T03:04:05+00:00", "onward approve").met


def tampered(store: Store) -> None:
    """Let ann promote 1 and 2; then change a letter in the reason of the newest entry by hand."""
    for version in (1, 2):
        promote(store, version)
    store._client.set_model_version_tag("staging.cnn", "2", "reason", "becausf")


def test_a_changed_letter_does_not_downgrade_silently(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(signers=keys)
    tampered(store)
    assert live(store) == 1  # the version of the last proven entry
    out = onward("status")[1]
    assert "ALARM: row 2 is not signed by any of the signers, or was changed after that" in out
    assert json.loads(onward("status", "--json")[1])[0]["environments"]["staging"]["alarm"]
    code, out, _ = onward("check", "cnn@staging")
    assert code == 1
    assert "NOT MET log: row 2 is not signed" in out
    code, _, err = onward("reconcile")
    assert code == 1
    assert "staging.cnn: row 2 is not signed" in err
    assert store.versions.alias("cnn", "staging") == 2  # the aliases are unchanged
    with pytest.raises(Refused, match=r"log: row 2 is not signed"):
        promote(store, 3)
    with pytest.warns(UnprovenLog, match=r"version 1, entry 1, is the last proven entry"):
        InferenceSession("cnn@staging")
    assert not_none(promote(store, 3, force=True).entry).forced
    assert (live(store), store.head("staging", "cnn").alarm) == (3, ())
    assert store.versions.alias("cnn", "staging") == 3


def test_a_running_session_does_not_follow_a_downgrade(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(signers=keys)
    for version in (1, 2):
        promote(store, version)
    session = InferenceSession("cnn@staging")
    store._client.set_model_version_tag("staging.cnn", "2", "reason", "becausf")
    with (
        pytest.warns(UnprovenLog),
        pytest.raises(Refused, match=r"raises an alarm \(row 2 .*\), and version 2 stays loaded"),
    ):
        session.refresh()
    assert session.metadata.version == 2


@pytest.mark.parametrize("asked", ["argument", "environment variable"])
def test_a_session_that_requires_signatures_loads_only_proven_versions(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
) -> None:
    options: dict[str, Any] = {"require_signed": True} if asked == "argument" else {}
    if not options:
        monkeypatch.setenv("ONWARD_REQUIRE_SIGNED", "1")
    environment(signers=keys)
    promote(store, 1)
    assert InferenceSession("cnn@staging", **options).metadata.version == 1
    with pytest.raises(Refused, match=r"cnn/1: no signature proves who registered a version"):
        InferenceSession("cnn/1", **options)
    store._client.create_model_version("staging.cnn", source="models:/cnn/2", tags={"schema": "2"})
    with pytest.raises(Refused, match=r"raises an alarm: row 2 is not an entry of Onward's"):
        InferenceSession("cnn@staging", **options)
    (tmp_path / "params.yaml").unlink()
    (tmp_path / "dvc.yaml").unlink()
    with pytest.raises(Refused, match=r"staging has no signers, .*ONWARD_PARAMS"):
        InferenceSession("cnn@staging", **options)
    with pytest.raises(Refused, match="no signature proves the origin of a file"):
        InferenceSession(tmp_path / "model.onnx", require_signed=True)
    monkeypatch.setenv("ONWARD_REQUIRE_SIGNED", "maybe")
    with pytest.raises(UsageError, match="ONWARD_REQUIRE_SIGNED: 'maybe' is not valid"):
        InferenceSession("cnn@staging")


def test_one_unsigned_row_of_a_newer_schema_blocks_nothing(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(signers=keys)
    promote(store, 1)
    for schema in ("2", "3", "²", "9" * 400):
        store._client.create_model_version("staging.cnn", source="models:/cnn/2", tags={"schema": schema})
    assert live(store) == 1
    assert onward("status")[0] == 0
    assert not_none(promote(store, 2).entry).base == 1
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1
    assert overview.check("cnn", "staging", store).met


def test_entries_of_a_departed_signer_still_count(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(signers=keys)
    promote(store, 1)
    be("bob")
    promote(store, 2)
    environment(signers={"bob": keys["bob"]})
    assert live(store) == 2
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1
    be("ann")
    with pytest.raises(Refused, match=r"accepts only entries signed by bob"):
        promote(store, 3)
    environment(signers=keys)
    promote(store, 3)
    environment(signers={"bob": keys["bob"], "ann": {"key": keys["ann"], "until": "2999-01-01T00:00:00+00:00"}})
    assert (live(store), store.head("staging", "cnn").alarm) == (3, ())
    environment(signers={"bob": keys["bob"], "ann": {"key": keys["ann"], "until": "2020-01-01T00:00:00Z"}})
    assert live(store) == 1
    with pytest.raises(Refused, match=r"accepts only entries signed by bob"):
        promote(store, 1)
    be("bob")
    assert onward("sign", "cnn", "--env", "staging", "--entry", "4")[1].startswith("signed entry 4: ann promoted")
    assert (live(store), store.head("staging", "cnn").alarm) == (3, ())
    assert onward("sign", "cnn", "--env", "staging", "--entry", "4")[0] == 2


def test_two_names_with_the_same_key_count_as_one_person(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(four_eyes=True, signers={"ann-at-home": keys["ann"], "bob": keys["bob"]})
    be("ann")
    assert approvals.approve("cnn", 1, "staging", reason="mine", store=store)[0].signer == "ann-at-home"
    environment(four_eyes=True, signers={**keys, "ann-at-home": keys["ann"]})
    for promoter in ("ann", "bob"):  # ann published it
        be(promoter)
        with pytest.raises(Refused, match="somebody else has to approve"):
            promote(store, 1)


def test_a_truncated_log_raises_an_alarm_on_hosts_that_saw_it_whole(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(signers=keys)
    for version in (1, 2):
        promote(store, version)
    session = InferenceSession("cnn@staging")
    store._client.delete_model_version("staging.cnn", "2")
    assert live(store) == 1
    [alarm] = store.head("staging", "cnn").alarm
    assert alarm.startswith("entry 2 was live when this machine read the log before, and now an older")
    assert "ALARM: entry 2 was live when" in onward("status")[1]
    assert "entry 2 was live when" in onward("reconcile")[2]
    with pytest.raises(Refused, match=r"raises an alarm \(entry 2 was live when .*\), and version 2 stays loaded"):
        session.refresh()
    with pytest.raises(Refused, match=r"raises an alarm: entry 2 was live when"):
        InferenceSession("cnn@staging", require_signed=True)
    assert not_none(promote(store, 3).entry).number == 4  # entry 3 follows the gap
    assert store.head("staging", "cnn").alarm == ()


def test_a_read_only_host_reads_signed_logs(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(signers=keys)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    promote(store, 1)
    assert (live(store), store.head("staging", "cnn").alarm) == (1, ())


def test_a_prompt_tag_cannot_hide_a_log_silently(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], onward: Command
) -> None:
    environment(signers=keys)
    promote(store, 1)
    store._client.set_model_version_tag("staging.cnn", "1", "mlflow.prompt.is_prompt", "true")
    code, _, err = onward("history", "cnn", "--env", "staging")
    assert code == 1
    assert "MLflow hides the versions of staging.cnn, because version 1 has the tag" in err
    with pytest.raises(Refused, match=r"MLflow hides the versions of staging\.cnn"):
        InferenceSession("cnn@staging")


def test_a_row_that_claims_a_newer_onward_does_not_stop_a_service(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(signers=keys)
    promote(store, 1)
    tags = {"schema": "99", "signature": "x"}
    store._client.create_model_version("staging.cnn", source="models:/cnn/2", tags=tags)
    with pytest.warns(UnprovenLog, match="row 2 was written by a newer Onward"):
        assert InferenceSession("cnn@staging").metadata.version == 1
    assert not_none(promote(store, 2, force=True).entry).base == 1


def test_an_approval_of_other_files_with_the_same_model_does_not_count(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None]
) -> None:
    environment(four_eyes=True, signers=keys)
    other = add_candidate(store, "cnn", 1, recorded_factor=1.0001, manifest=None)
    assert not_none(store.candidate("cnn", other)).sha256 == not_none(store.candidate("cnn", 1)).sha256
    be("bob")
    approvals.approve("cnn", 1, "staging", reason="looked at it", store=store)
    be("ann")
    with pytest.raises(Refused, match="somebody else has to approve"):
        promote(store, other)


def test_log_memory_is_not_written_to_a_world_writable_folder(
    store: Store, keys: dict[str, str], be: Callable[[str], None], environment: Callable[..., None], tmp_path: Path
) -> None:
    from onward.registry.store.cache import cache

    environment(signers=keys)
    cache().mkdir(parents=True)
    cache().chmod(0o777)
    promote(store, 1)
    assert list(cache().iterdir()) == []
    cache().chmod(0o700)
    (tmp_path / "victim").mkdir()
    (cache() / "logs").symlink_to(tmp_path / "victim")
    promote(store, 2)
    assert list((tmp_path / "victim").iterdir()) == []


def test_different_clocks_do_not_change_the_order(
    store: Store,
    keys: dict[str, str],
    be: Callable[[str], None],
    environment: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment(signers=keys)
    monkeypatch.setattr(promotion, "now", lambda: "2026-01-02T03:04:30+00:00")
    first = not_none(promote(store, 1).entry)
    monkeypatch.setattr(promotion, "now", lambda: "2026-01-02T03:04:05+00:00")
    assert not_none(promote(store, 2).entry).at == first.at
