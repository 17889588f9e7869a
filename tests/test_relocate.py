"""An embedded store in a moved or copied folder is detected, rejected, and repaired by `onward store move`."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.errors import Refused, StoreUnreachable, UsageError
from onward.registry.operations import overview, promotion, pruning
from onward.registry.store import relocate
from onward.registry.store.connection import connect, sqlite_uri
from onward.registry.store.store import Store
from onward.registry.tracking.recorder import publish
from onward.registry.uri import sqlite_file
from tests.conftest import ROOT, Command
from tests.evidence_factory import make_publication
from tests.store_factory import _empty_database, add_candidate

AWKWARD = "ä b#c 50%25 d?é;e"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in a folder with special characters, with two candidates, promoted to staging in turn."""
    root = tmp_path / AWKWARD / "onward"
    root.mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("models: {}\n")
    shutil.copyfile(_empty_database(), root / "mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ONWARD_ACTOR", "ann")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(root)
    store = Store()
    for factor in (1.0, 2.0):
        add_candidate(store, "cnn", factor)
        promotion.promote("cnn", "staging", reason="test", store=store)
    assert sorted(path.name for path in root.iterdir()) == ["dvc.yaml", "mlartifacts", "mlflow.db", "params.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [AWKWARD]
    return root


def dump(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "mlflow.db")) as tables:
        return list(tables.iterdump())


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def copied(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkout, which becomes the working directory."""
    copy = home.parent / name
    shutil.copytree(home, copy)
    monkeypatch.chdir(copy)
    return copy


def moved(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    there = home.parent / name
    home.rename(there)
    monkeypatch.chdir(there)
    return there


def test_a_store_at_its_original_path_needs_no_move(home: Path) -> None:
    assert relocate.find() is None
    assert relocate.move() == relocate.Moved(home, (), {}, dry_run=False)
    assert overview.check("cnn", "staging").met


def test_commands_on_a_moved_store_explain_the_move_and_the_remedy(
    home: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    there = moved(home, "elsewhere", monkeypatch)
    for command in (
        ["promote", "cnn", "1", "--to", "staging", "--reason", "x"],
        ["rollback", "cnn", "--env", "staging", "--reason", "x"],
        ["check", "cnn@staging"],
        ["export-log", "cnn", "--files", "out"],
        ["prune", "cnn", "--older-than", "0h"],
        ["environments", "create", "cnn"],
        ["diff", "cnn/1", "cnn/2"],
        ["inspect", "cnn@staging"],
        ["ui"],
    ):
        code, out, err = onward(*command)
        if command[0] == "diff" and code == 0:
            continue  # the shown values are in the database
        assert (code, out) == (2, ""), command
        assert f"{there} was moved or copied" in err
        assert f"looks for its files in {home};" in err
        assert "`onward store move`" in err
    with pytest.raises(UsageError, match="onward store move"):
        publish(make_publication(there))
    assert not home.exists()


def test_status_reports_a_moved_store_as_text_and_json(
    home: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    there = moved(home, "elsewhere", monkeypatch)
    code, out, _ = onward("status")
    assert code == 0
    assert out.splitlines()[-1].startswith(f"! the store in {there} was moved or copied")
    code, out, err = onward("status", "--json")
    assert json.loads(out)[0]["model"] == "cnn"
    assert f"looks for its files in {home};" in err


def test_after_move_store_everything_works_again(home: Path, monkeypatch: pytest.MonkeyPatch, onward: Command) -> None:
    # One name is a prefix of the other.
    there = moved(home, "onward2", monkeypatch)
    before = dump(there)
    code, out, _ = onward("store", "move", "--dry-run", "--json")
    said = json.loads(out)
    assert (code, said["recorded"], said["here"]) == (0, [str(home)], str(there))
    assert said["rewritten"]["experiments.artifact_location"] == 2
    assert said["rewritten"]["logged_models.artifact_location"] == 4
    assert said["rewritten"]["model_versions.storage_location"] == 4
    assert dump(there) == before
    code, out, _ = onward("store", "move")
    assert code == 0
    assert str(home) in out
    assert not any(str(home.as_uri()) + "/" in line for line in dump(there))
    assert overview.check("cnn", "staging").met
    assert promotion.rollback("cnn", "staging", reason="x").version == 1
    assert overview.check("cnn", "staging").met
    assert promotion.promote("cnn", "production", reason="x").changed
    assert publish(make_publication(there)).version == 1
    assert not home.exists()
    code, out, _ = onward("store", "move")
    assert (code, "nothing to do" in out) == (0, True)
    assert onward("status")[1].count("!") == 0


def test_a_copy_becomes_independent_of_its_original(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(home)
    copied(home, "copy", monkeypatch)
    with pytest.raises(UsageError, match="moved or copied"):
        pruning.prune("cnn", "0h")
    relocate.move()
    promotion.promote("cnn", "production", reason="x")
    promotion.promote("cnn", "staging", 1, reason="x")
    shutil.rmtree("mlartifacts")
    assert not overview.check("cnn", "staging").met
    assert snapshot(home) == before
    monkeypatch.chdir(home)
    assert overview.check("cnn", "staging").met
    assert overview.status()[0].environments[1].live is None


def test_a_copy_inside_its_original_can_be_moved_in_and_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = home / "inner"
    inner.mkdir()
    for name in ("mlflow.db", "mlartifacts", "dvc.yaml", "params.yaml"):
        (shutil.copytree if (home / name).is_dir() else shutil.copy)(home / name, inner / name)
    monkeypatch.chdir(inner)
    assert relocate.move().recorded == (str(home),)
    assert overview.check("cnn", "staging").met
    assert relocate.move().rewritten == {}
    shutil.rmtree(home / "mlartifacts")
    shutil.move(inner / "mlartifacts", home / "mlartifacts")
    shutil.move(inner / "mlflow.db", home / "mlflow.db")
    monkeypatch.chdir(home)
    assert relocate.move().recorded == (str(inner),)
    assert overview.check("cnn", "staging").met


def test_files_left_behind_are_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = copied(home, "copy", monkeypatch)
    shutil.rmtree(copy / "mlartifacts")
    before = dump(copy)
    with pytest.raises(Refused, match="are not beside its database") as refused:
        relocate.move()
    assert str(home / "mlartifacts" / "environments") in str(refused.value)
    shutil.rmtree(home / "mlartifacts")
    with pytest.raises(Refused, match="are not beside its database"):
        relocate.move(dry_run=True)
    assert dump(copy) == before


def test_previously_lost_files_do_not_block_a_move(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [lost, *_] = (home / "mlartifacts" / "environments" / "staging").glob("models/*")
    shutil.rmtree(lost)
    moved(home, "elsewhere", monkeypatch)
    relocate.move()
    assert relocate.find() is None


def test_a_link_to_the_folder_is_not_a_move(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = home.parent / "link"
    link.symlink_to(home)
    monkeypatch.chdir(link)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(link / "mlflow.db"))
    assert relocate.find() is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    link.unlink()
    there = moved(home, "elsewhere", monkeypatch)
    home.symlink_to(there)  # the old name still resolves to this folder
    assert relocate.find() is None
    assert overview.check("cnn", "staging").met


def test_files_shared_with_the_original_through_a_link_are_rejected(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = home.parent / "disk"
    shutil.move(home / "mlartifacts", disk)
    (home / "mlartifacts").symlink_to(disk)
    assert relocate.find() is None
    copy = home.parent / "copy"
    shutil.copytree(home, copy, symlinks=True)
    monkeypatch.chdir(copy)
    with pytest.raises(Refused, match=r"is a link to .*disk"):
        relocate.move()
    (copy / "mlartifacts").unlink()
    shutil.copytree(disk, copy / "mlartifacts")
    assert relocate.move().recorded == (str(home),)


def test_an_experiment_with_files_elsewhere_is_unchanged(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect()
    for name, location in (("theirs", "/srv/mlartifacts/7"), ("bucket", "s3://bucket/mlartifacts/bucket")):
        client.create_experiment(name, artifact_location=location)
    client.create_experiment("below", artifact_location=str(home / "mlruns" / "8"))
    assert relocate.find() is None
    there = moved(home, "elsewhere", monkeypatch)
    relocate.move()
    client = connect()
    locations = {found.name: found.artifact_location for found in client.search_experiments()}
    assert locations["theirs"] == "/srv/mlartifacts/7"
    assert locations["bucket"] == "s3://bucket/mlartifacts/bucket"
    assert locations["below"] == str(there / "mlruns" / "8")


def test_tables_of_another_mlflow_version_are_not_rewritten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(home, "elsewhere", monkeypatch)
    with closing(sqlite3.connect(there / "mlflow.db")) as tables, tables:
        tables.execute("UPDATE alembic_version SET version_num = 'another'")
    assert relocate.find() is not None
    with pytest.raises(UsageError, match="revision is another"):
        relocate.move()


def test_a_server_or_missing_store_has_nothing_to_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert relocate.find() is None
    with pytest.raises(UsageError, match="only the embedded store"):
        relocate.move()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert relocate.find() is None
    with pytest.raises(UsageError, match="no store to move"):
        relocate.move()
    assert not list(tmp_path.iterdir())


def test_a_move_waits_for_another_writer_and_then_names_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(home, "elsewhere", monkeypatch)
    real = sqlite3.connect
    with closing(sqlite3.connect(there / "mlflow.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "timeout": 0.1}))
        with pytest.raises(StoreUnreachable, match="locked"):
            relocate.move()


def test_a_killed_move_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(home, "elsewhere", monkeypatch)
    before = dump(there)
    script = (
        "import os, sqlite3\nfrom onward.registry.store import relocate\n"
        "class Dying(sqlite3.Connection):\n"
        "    def execute(self, sql, *rest):\n"
        "        if sql == 'COMMIT':\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().execute(sql, *rest)\n"
        "real = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: real(*a, **k, factory=Dying)\n"
        "relocate.move()"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9
    assert dump(there) == before
    assert relocate.move().rewritten
    assert overview.check("cnn", "staging").met


def test_signed_entries_stay_proven_after_a_move(home: Path) -> None:
    for entry in Store().log("staging", "cnn").entries():
        assert entry.source.startswith("models:/m-")


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@given(NAMES, NAMES)
def test_recorded_locations_are_read_back(first: str, second: str) -> None:
    path = f"/{first}/{second}"
    assert relocate.to_path(relocate.to_uri(path)) == path
    assert relocate.to_uri(path) == Path(path).as_uri()


@given(NAMES)
def test_the_uri_of_a_database_resolves_to_the_same_file_in_sqlalchemy(name: str) -> None:
    from sqlalchemy import make_url

    file = Path(f"/{name}/mlflow.db")
    assert sqlite_file(sqlite_uri(file)) == file
    assert make_url(sqlite_uri(file)).database == str(file)


@given(NAMES, NAMES, NAMES)
def test_only_paths_below_the_old_folder_move(old: str, new: str, rest: str) -> None:
    here = Path(tempfile.gettempdir()) / new
    recorded = (f"/{old}",)
    assert relocate._moved(Path(f"/{old}/{rest}").as_uri(), recorded, here) == (here / rest).as_uri()
    assert relocate._moved(f"/{old}/{rest}", recorded, here) == str(here / rest)
    for other in (f"/{old}{rest}", f"/{old} {rest}/{rest}", f"/another folder/{old}/{rest}"):
        assert relocate._moved(other, recorded, here) is None
        assert relocate._moved(Path(other).as_uri(), recorded, here) is None
    for elsewhere in (f"s3://{old}/{rest}", f"models:/{old}/{rest}", "", None):
        assert relocate._moved(elsewhere, recorded, here) is None
