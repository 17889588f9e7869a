"""Addresses: no user's name and no password is ever printed, and what is no store is told in seconds."""

from __future__ import annotations

import re
import socket
import time
import urllib.parse

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
from tests.store_factory import fresh_store

# A secret cannot stand in the rest of a message by chance.
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
def test_a_store_is_named_without_what_is_secret(uri):
    assert not leaks(without_credentials(uri))
    assert not leaks(host(uri))


@given(uri=ADDRESSES)
def test_a_library_that_repeats_an_address_tells_nothing_either(uri):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        parts = re.split("[@/:#?]", uri.partition("://")[2])
        for words in (*raised(uri), f"cannot resolve {uri!r}", *(f"no host {part.lower()!r}" for part in parts)):
            assert not leaks(hidden(words)), hidden(words)


def said_of(uri: str) -> str:
    """What is said of an address where nothing answers; nothing where a socket may stand between."""
    try:
        reach.check(uri, create=False)
    except (UsageError, StoreUnreachable) as refused:
        return str(refused)
    return ""


def raised(uri: str) -> list[str]:
    """What libraries say of an address, where they cannot use it."""
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
def test_a_store_that_cannot_be_used_is_told_without_what_is_secret(uri):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError(f"no {uri}")))
        assert not leaks(said_of(uri))
        with pytest.raises(StoreUnreachable) as refused, reachable():
            raise ConnectionError(f"HTTPConnectionPool: {uri}")
        assert not leaks(str(refused.value))


@given(ADDRESSES)
def test_a_webhook_that_fails_is_told_without_what_is_secret(uri):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notification, "PAUSES_S", ())
        patch.setattr(notification, "TIMEOUT_S", 0.01)
        patch.setattr(socket, "create_connection", lambda *_, **__: (_ for _ in ()).throw(OSError(f"no {uri}")))
        patch.setenv("HOOK", uri)
        entry = type("Entry", (), {"model_dump": lambda *_, **__: {}})()
        assert not leaks(notification.announce(Notify(webhook="$HOOK"), "cnn", "staging", entry))


def test_what_is_no_secret_is_kept():
    assert without_credentials("https://user:secret@host:5000/path?token=x") == "https://host:5000/path"
    assert without_credentials("postgresql+psycopg://u:p%40w@host/db?sslmode=require") == "postgresql+psycopg://host/db"
    assert without_credentials("sqlite:////home/a@b/mlflow.db?x=y") == "sqlite:///mlflow.db"
    assert without_credentials("http://[::1]:5000/x") == "http://[::1]:5000/x"
    assert host("https://u:p@hooks.example.org:8443/services/x") == "hooks.example.org"
    assert scheme("PostgreSQL+psycopg://x") == "postgresql"
    assert sqlite_file("sqlite:///:memory:") is None


def test_the_ui_prints_no_password(onward, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:pa/ss#w@rd@mlflow.example.org")
    code, out, err = onward("ui")
    assert code == 0
    assert out.startswith("https://mlflow.example.org\n")
    assert "bob" not in out + err


@pytest.mark.parametrize("uri", ["htp://x", "file:///tmp/mlruns", "/tmp/mlruns", "mlruns", "sqlit:///x.db"])
def test_an_address_that_is_no_store_is_a_mistake_of_usage(onward, monkeypatch, tmp_path, uri):
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
def test_no_command_makes_a_store_at_a_mistyped_path(onward, monkeypatch, tmp_path, arguments, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{folder}x.db")
    code, out, err = onward(*arguments)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert f"there is no MLflow store {tmp_path}/{folder}x.db" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_checkout_without_a_store_stays_without_one(onward, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    code, out, _ = onward("status")
    assert (code, out) == (0, "No model is registered yet: `dvc repro` registers every model that passes.\n")
    code, _, err = onward(*arguments)
    assert (code, err.count("\n")) == (4, 1)
    assert "`dvc repro` creates it" in err
    assert nothing_yet()
    assert [path.name for path in tmp_path.iterdir()] == ["dvc.yaml"]


def test_what_is_no_store_is_left_alone(tmp_path, monkeypatch):
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


def test_the_pipeline_makes_the_store_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert connect().search_registered_models() == []
    assert (tmp_path / "mlflow.db").is_file()


def test_a_store_that_is_there_is_used(tmp_path, monkeypatch):
    fresh_store(tmp_path, monkeypatch)
    assert list(Store(create=False).candidates("cnn")) == []


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_nobody_runs_is_told_at_once(onward, monkeypatch, scheme):
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


def test_a_database_that_never_answers_is_told_in_seconds(onward, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://bob:secret@127.0.0.1:{silent.getsockname()[1]}/db")
        began = time.monotonic()
        code, _, err = onward("status")
    assert (code, err.count("\n")) == (4, 1)
    assert time.monotonic() - began < 20
    assert "secret" not in err
