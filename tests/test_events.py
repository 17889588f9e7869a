"""Hooks receive entries, and a failed hook never invalidates an entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onward.registry.errors import UsageError
from onward.registry.gates import policy
from onward.registry.operations import notification, promotion
from onward.registry.operations.promotion import Outcome
from onward.registry.store.store import Store
from tests.conftest import Command, Receiver, not_none
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(notification, "PAUSES_S", (0.0, 0.0))
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    return store


def environments(folder: Path, notify: Any) -> None:
    (folder / "dvc.yaml").write_text("stages: {}\n")
    section = {"staging": {"from": "candidate", "require": [], "notify": notify}}
    (folder / "params.yaml").write_text(json.dumps({"environments": section}))


def promote(store: Store, version: int) -> Outcome:
    return promotion.promote("cnn", "staging", version, reason="because", store=store)


def test_a_command_receives_every_entry_on_stdin(store: Store, tmp_path: Path) -> None:
    environments(tmp_path, {"command": ["sh", "-c", "cat >> told; echo >> told"]})
    promote(store, 1)
    promote(store, 2)
    assert promote(store, 2).note == ""
    promotion.rollback("cnn", "staging", reason="wrong on sevens", store=store)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [(event["number"], event["kind"], event["candidate_version"]) for event in told] == [
        (1, "promote", 1),
        (2, "promote", 2),
        (3, "rollback", 1),
    ]
    assert told[2]["sentence"].endswith("deployed by entry 1: wrong on sevens")
    assert {(event["model"], event["environment"], event["actor"]) for event in told} == {("cnn", "staging", "ann")}


def test_a_webhook_receives_the_entry_as_its_body(store: Store, tmp_path: Path, receiver: Receiver) -> None:
    environments(tmp_path, {"webhook": f"http://127.0.0.1:{receiver.server_port}/hook"})
    entry = not_none(promote(store, 1).entry)
    [(path, content, body)] = receiver.got
    assert (path, content) == ("/hook", "application/json")
    assert body == notification.event("cnn", "staging", entry)


def test_a_failed_webhook_is_retried(store: Store, tmp_path: Path, receiver: Receiver) -> None:
    environments(tmp_path, {"webhook": f"http://127.0.0.1:{receiver.server_port}/"})
    receiver.codes[:] = [503, 429, 200]
    assert promote(store, 1).note == ""
    assert len(receiver.got) == 3


@pytest.mark.parametrize(("code", "tries"), [(500, 3), (404, 1), (302, 1)])
def test_a_rejecting_webhook_is_a_warning_and_the_entry_counts(
    store: Store, tmp_path: Path, receiver: Receiver, code: int, tries: int
) -> None:
    environments(tmp_path, {"webhook": f"http://127.0.0.1:{receiver.server_port}/"})
    receiver.codes[:] = [code]
    outcome = promote(store, 1)
    assert outcome.note.endswith(f"the hook of staging failed: the webhook at 127.0.0.1 answered {code}")
    assert [got[0] for got in receiver.got] == ["/"] * tries
    assert not_none(store.log("staging", "cnn").history.live).candidate_version == 1
    assert store.versions.aliases("staging.cnn") == {"live": 1}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sh", "-c", "exit 3"], "sh ended with exit code 3"),
        (["no-such-command"], "no-such-command cannot be run: No such file"),
        (["sleep", "60"], "sleep did not finish within 0.2 s"),
    ],
)
def test_a_failed_command_is_a_warning_and_the_entry_counts(
    store: Store, tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.setattr(notification, "TIMEOUT_S", 0.2)
    environments(tmp_path, {"command": command})
    code, out, err = onward("promote", "cnn", "1", "--to", "staging", "--reason", "because", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["changed"]
    assert answer["note"] in err
    assert message in answer["note"]
    assert not_none(store.log("staging", "cnn").history.live).candidate_version == 1


def test_output_of_a_command_does_not_mix_with_json(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    environments(tmp_path, {"command": ["echo", "told them"]})
    promote(store, 1)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "told them\n")


def test_a_secret_address_is_never_printed(
    store: Store, tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments(tmp_path, {"webhook": "$TEAM_HOOK"})
    for address in ("http://user:hush@127.0.0.1:9/hush?token=hush", "hush", "http://[hush/hush"):
        monkeypatch.setenv("TEAM_HOOK", address)
        code, out, err = onward("promote", "cnn", "--to", "staging", "--reason", "because", "--json")
        assert code == 0
        assert "hook of staging failed" in err
        assert "hush" not in out + err
        onward("promote", "cnn", "1", "--to", "staging", "--reason", "because")


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        ({}, "environments.staging.notify: .*give either command, webhook or server_webhook"),
        ({"command": ["a"], "webhook": "http://a"}, "environments.staging.notify: .*give either"),
        ({"command": "echo"}, "environments.staging.notify.command"),
        ({"command": []}, "environments.staging.notify.command"),
        ({"webhook": "ftp://a"}, "environments.staging.notify.webhook"),
        (
            {"webhook": "http://a", "retries": 3},
            "notify.retries: unknown key; there are command, webhook, ",
        ),
    ],
)
def test_an_invalid_hook_is_rejected_with_its_path(notify: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        policy.parse({"staging": {"from": "candidate", "require": [], "notify": notify}})


def test_a_server_webhook_requires_a_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments(tmp_path, {"server_webhook": "$TEAM_HOOK"})
    assert promote(store, 1).note == ""
    with pytest.raises(UsageError, match="the environment variable TEAM_HOOK must contain an http"):
        promotion.create_environments(["cnn"], store)
    monkeypatch.setenv("TEAM_HOOK", "https://example.invalid/hush")
    with pytest.raises(UsageError, match=r"server_webhook: the store is a database without a server") as refused:
        promotion.create_environments(["cnn"], store)
    assert "hush" not in str(refused.value)
