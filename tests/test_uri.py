"""Addresses: user names and passwords are never printed, and an invalid store is reported within seconds."""

from __future__ import annotations

import re
import socket
import time
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onward.registry.errors import MachineFault, StoreMissing, StoreUnreachable, UsageError
from onward.registry.gates.policy import Notify
from onward.registry.operations import notification
from onward.registry.store import reach
from onward.registry.store.connection import connect, nothing_yet, reachable
from onward.registry.store.store import Store
from onward.registry.uri import hidden, host, scheme, sqlite_file, without_credentials
from tests.conftest import Command
from tests.store_factory import fresh_store

# A secret cannot appear in the rest of a message by chance.
SECRET = st.lists(st.sampled_from(["Zq7", "Xw9", "Kj4", "@", "/", "#", "?", ":", "%", "&", " ", "'", "\\", "é"])).map(
    lambda parts: f"Vb3{''.join(parts)}Vb3"
)
SCHEMES = st.sampled_from(["http", "https", "postgresql", "postgresql+psycopg", "mysql+pymysql", "htp"])
PLACES = st.sampled_from(["host", "host:5000", "host:5x0", "[::1]:80", "host:5000/db", "host/db?sslmode=require", ""])
LEAKS = ("zq7", "xw9", "kj4", "vb3")


def address(kind: str, user: str, password: str, place: str, encoded: bool) -> str:
    quote = urllib.parse.quote if encoded else str
    return f"{kind}://{quote(user, **({'safe': ''} if encoded else {}))}:{quote(password)}@{place}"


ADDRESSES = st.builds(address, SCHEMES, SECRET, SECRET, PLACES, st.booleans())


def leaks(text: str) -> bool:
    return any(part in text.lower() for part in LEAKS)


@given(ADDRESSES)
@example("http://Vb3:pw@host:5x0")
@example("http://host:Vb3")
@example("Vb3:Vb3@host/db")
@example("postgresql://host/db?password=Vb3#Vb3")
def test_a_store_is_named_without_secrets(uri: str) -> None:
    assert not leaks(without_credentials(uri))
    assert not leaks(host(uri))


@given(uri=ADDRESSES)
def test_library_messages_that_repeat_an_address_leak_no_secrets(uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        parts = re.split("[@/:#?]", uri.partition("://")[2])
        for words in (*raised(uri), f"cannot resolve {uri!r}", *(f"no host {part.lower()!r}" for part in parts)):
            assert not leaks(hidden(words)), hidden(words)


def message_for(uri: str) -> str:
    """The message for an unreachable address; empty if a socket may intervene."""
    try:
        reach.check(uri, create=False)
    except (UsageError, StoreUnreachable) as refused:
        return str(refused)
    return ""


def raised(uri: str) -> list[str]:
    """The messages of libraries for an unusable address."""
    import requests
    from sqlalchemy.engine import make_url

    words = []
    for use in (
        lambda: requests.Request("GET", uri).prepare(),
        lambda: urllib.parse.urlsplit(uri).port,
        lambda: make_url(uri),
        lambda: int(uri.split(":")[2]),
        lambda: uri.encode("ascii"),
    ):
        try:
            use()
        except Exception as error:
            words.append(f"{error} {error!r}")
    return words


@given(ADDRESSES)
def test_an_unusable_store_is_reported_without_secrets(uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError(f"no {uri}")))
        assert not leaks(message_for(uri))
        with pytest.raises(StoreUnreachable) as refused, reachable():
            raise ConnectionError(f"HTTPConnectionPool: {uri}")
        assert not leaks(str(refused.value))


@given(ADDRESSES)
def test_a_failed_webhook_is_reported_without_secrets(uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notification, "PAUSES_S", ())
        patch.setattr(notification, "TIMEOUT_S", 0.01)
        patch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError(f"no {uri}")))
        patch.setenv("HOOK", uri)
        entry = type("Entry", (), {"model_dump": lambda *_, **__: {}})()
        assert not leaks(notification.announce(Notify(webhook="$HOOK"), "cnn", "staging", entry))


def test_non_secret_parts_of_an_address_are_kept() -> None:
    assert without_credentials("https://user:secret@host:5000/path?token=x") == "https://host:5000/path"
    assert without_credentials("postgresql+psycopg://u:p%40w@host/db?sslmode=require") == "postgresql+psycopg://host/db"
    assert without_credentials("sqlite:////home/a@b/mlflow.db?x=y") == "sqlite:///mlflow.db"
    assert without_credentials("http://[::1]:5000/x") == "http://[::1]:5000/x"
    assert host("https://u:p@hooks.example.org:8443/services/x") == "hooks.example.org"
    assert scheme("PostgreSQL+psycopg://x") == "postgresql"
    assert sqlite_file("sqlite:///:memory:") is None


def test_the_ui_prints_no_password(onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:pa/ss#w@rd@mlflow.example.org")
    code, out, err = onward("ui")
    assert code == 0
    assert out.startswith("https://mlflow.example.org\n")
    assert "bob" not in out + err


@pytest.mark.parametrize("uri", ["htp://x", "file:///tmp/mlruns", "/tmp/mlruns", "mlruns", "sqlit:///x.db"])
def test_an_invalid_store_address_is_a_usage_error(
    onward: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, out, err = onward("status")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for known in ("http://", "https://", "sqlite://", "postgresql://"):
        assert known in err
    assert list(tmp_path.iterdir()) == []


READING = [
    ["history", "cnn"], ["check", "cnn@staging"], ["diff", "cnn/1", "cnn/2"], ["compare", "cnn", "1", "2"],
    ["export-log", "cnn"], ["prune", "cnn", "--older-than", "1d"], ["reconcile"], ["ui"], ["inspect", "cnn@staging"],
    ["promote", "cnn", "--to", "staging", "--reason", "because"],
    ["approve", "cnn", "1", "--env", "staging", "--reason", "because"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", [["status"], *READING], ids=" ".join)
@pytest.mark.parametrize("folder", ["", "typo/"])
def test_no_command_creates_a_store_at_a_mistyped_path(
    onward: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{folder}x.db")
    code, out, err = onward(*arguments)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert f"there is no MLflow store {tmp_path}/{folder}x.db" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_commands_create_no_store_in_a_checkout(
    onward: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    code, out, _ = onward("status")
    assert (code, out) == (0, "No model is registered yet: `dvc repro` registers every model that passes.\n")
    code, _, err = onward(*arguments)
    assert (code, err.count("\n")) == (4, 1)
    assert "`dvc repro` creates it" in err
    assert nothing_yet()
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.yaml"]


def test_a_file_that_is_not_a_store_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    other, broken = tmp_path / "other.db", tmp_path / "broken.db"
    with sqlite3.connect(other) as tables:
        tables.execute("CREATE TABLE mine (x)")
    broken.write_text("no database\n" * 100)
    before = other.read_bytes()
    for file, error in ((other, StoreMissing), (broken, StoreUnreachable), (tmp_path, MachineFault)):
        with pytest.raises(error, match=file.name):
            reach.check(f"sqlite:///{file}", create=True)
    assert other.read_bytes() == before


def test_the_pipeline_creates_the_store_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert connect().search_registered_models() == []
    assert (tmp_path / "mlflow.db").is_file()


def test_an_existing_store_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_store(tmp_path, monkeypatch)
    assert list(Store(create=False).candidates("cnn")) == []


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_unreachable_server_is_reported_at_once(
    onward: Command, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://bob:secret@127.0.0.1:{free.getsockname()[1]}/db")
        began = time.monotonic()
        code, _, err = onward("status")
    assert (code, err.count("\n")) == (4, 1)
    assert time.monotonic() - began < 15
    assert "bob" not in err
    assert "secret" not in err
    assert "changed" not in err


def test_an_unresponsive_database_is_reported_within_seconds(onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://bob:secret@127.0.0.1:{silent.getsockname()[1]}/db")
        began = time.monotonic()
        code, _, err = onward("status")
    assert (code, err.count("\n")) == (4, 1)
    assert time.monotonic() - began < 20
    assert "secret" not in err
