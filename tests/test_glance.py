"""Direct reads of the embedded store give the same as MLflow."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from onward.registry.operations import overview, promotion
from onward.registry.store import sqlite_reader
from onward.registry.store.schema import Overview, Version
from onward.registry.store.store import Store
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def facts(version: Version) -> tuple[object, ...]:
    return (
        version.name,
        int(version.version),
        version.creation_timestamp,
        version.current_stage,
        version.source,
        dict(version.tags),
    )


def as_facts(known: dict[str, Overview]) -> dict[str, object]:
    return {name: ([facts(version) for version in it.newest], dict(it.aliases)) for name, it in known.items()}


def test_an_empty_store_holds_nothing(store: Store) -> None:
    assert sqlite_reader.read() == {} == store.versions.everything()


def test_it_returns_the_same_as_mlflow(store: Store) -> None:
    for factor in (1.0, 2.0, 3.0):
        add_candidate(store, "cnn", factor)
    add_candidate(store, "mlp")
    for version in (1, 2):
        promotion.promote("cnn", "staging", version, reason="test", store=store)
    promotion.rollback("cnn", "staging", reason="test", store=store)
    promotion.promote("cnn", "production", 1, reason="test", store=store)
    client = store._client
    store.set_stage("cnn", 2, "Staging")
    store.set_stage("cnn", 1, "Archived")
    client.delete_model_version("cnn", "3")
    client.create_registered_model("bare")
    client.set_registered_model_tag("bare", "kind", "none")
    client.register_prompt("hello", "Hello, {{name}}")
    found = sqlite_reader.read()
    assert found is not None
    assert sorted(found) == ["bare", "cnn", "mlp", "production.cnn", "staging.cnn"]
    assert as_facts(found) == as_facts(store.versions.everything())
    assert overview.status() == overview.status(store)


def test_tables_of_another_revision_are_read_through_mlflow(store: Store) -> None:
    with closing(sqlite3.connect("mlflow.db")) as tables, tables:
        tables.execute("UPDATE alembic_version SET version_num = 'another'")
    assert sqlite_reader.read() is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9"),
        ("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9"),
        ("MLFLOW_WORKSPACE", "others"),
        ("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db"),
    ],
)
def test_any_other_store_is_read_through_mlflow(
    store: Store, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert sqlite_reader.read() is None


def test_a_file_that_is_not_a_database_is_read_through_mlflow(store: Store) -> None:
    Path("mlflow.db").write_bytes(b"rubbish, and enough of it to be read as the head of a file" * 10)
    assert sqlite_reader.read() is None


def test_status_of_the_embedded_store_imports_no_mlflow(store: Store) -> None:
    add_candidate(store, "cnn")
    promotion.promote("cnn", "staging", 1, reason="test", store=store)
    script = (
        "import sys\nfrom onward.cli import app\n"
        "app(['status'], standalone_mode=False)\n"
        "print([name for name in ('mlflow', 'sqlalchemy', 'numpy', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "cnn" in done.stdout
