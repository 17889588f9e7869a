"""Moving a history to another store transfers numbers, verdicts and bytes, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from onward.registry.artifact.manifest import check_folder
from onward.registry.errors import LostRace, Refused, UsageError
from onward.registry.operations import overview, promotion, transfer
from onward.registry.store.store import Store
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, fresh_store


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The old server: two promotions, a rollback and a lost entry, one of which was then deleted."""
    (tmp_path / "old").mkdir()
    store = fresh_store(tmp_path / "old", monkeypatch)
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor)
    for version in (1, 2):
        promotion.promote("cnn", "staging", version, reason="because", store=store)
        promotion.promote("cnn", "production", reason="because", store=store)
    stale = not_none(store.log("staging", "cnn").history.live).model_copy(update={"key": "stale", "base": 0})
    with pytest.raises(LostRace):
        store.append("staging", "cnn", stale)
    promotion.promote("cnn", "staging", 3, reason="because", store=store)
    promotion.rollback("cnn", "staging", reason="wrong on sevens", store=store)
    return store


@pytest.fixture
def exported(old: Store, tmp_path: Path) -> Path:
    """The log and the files, as `onward export-log` writes them."""
    path = tmp_path / "log.jsonl"
    write(path, transfer.export(["cnn"], tmp_path / "files", old))
    return path


@pytest.fixture
def new(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    (tmp_path / "new").mkdir()
    return fresh_store(tmp_path / "new", monkeypatch)


def write(path: Path, lines: Iterable[BaseModel]) -> None:
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines))


def facts(store: Store, environment: str = "staging") -> list[dict[str, Any]]:
    line = store.log(environment, "cnn").history
    return [entry.model_dump(exclude={"source"}) for entry in (*line.counted, *line.lost)]


def test_a_history_is_imported_completely_with_its_bytes(
    old: Store, new: Store, exported: Path, tmp_path: Path
) -> None:
    before = {name: facts(old, name) for name in ("staging", "production")}
    done = transfer.import_(exported, tmp_path / "files", new)
    assert [(log.environment, log.added, log.present) for log in done] == [("production", 2, 0), ("staging", 5, 0)]
    assert {name: facts(new, name) for name in before} == before
    assert new.log("staging", "cnn").marked == {3}
    assert new.versions.aliases("staging.cnn") == {"live": 5}
    assert overview.check("cnn", "production", new).met
    assert promotion.rollback("cnn", "staging", reason="one further", store=new).version == 1


def test_importing_twice_changes_nothing_even_after_another_deployment(
    new: Store, exported: Path, tmp_path: Path
) -> None:
    transfer.import_(exported, tmp_path / "files", new)
    promotion.rollback("cnn", "staging", reason="because", store=new)
    before = facts(new)
    assert {log.added for log in transfer.import_(exported, tmp_path / "files", new)} == {0}
    assert facts(new) == before


def test_an_interrupted_import_is_completed(
    new: Store, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = new._client.create_model_version
    created: list[Any] = []

    def break_off(*arguments: Any, **options: Any) -> Any:
        if len(created) == 4:
            raise KeyboardInterrupt
        created.append(create(*arguments, **options))
        return created[-1]

    with monkeypatch.context() as interrupted:
        interrupted.setattr(new._client, "create_model_version", break_off)
        with pytest.raises(KeyboardInterrupt):
            transfer.import_(exported, tmp_path / "files", new)
    assert sum(log.added for log in transfer.import_(exported, tmp_path / "files", new)) == 3
    assert [entry["number"] for entry in facts(new)] == [1, 2, 4, 5, 3]


def test_numbers_of_deleted_entries_stay_unused(
    old: Store, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old._client.delete_model_version("staging.cnn", "2")
    write(exported, transfer.export(["cnn"], None, old))
    before = facts(old)
    (tmp_path / "new").mkdir()
    new = fresh_store(tmp_path / "new", monkeypatch)
    transfer.import_(exported, tmp_path / "files", new)
    assert facts(new) == before
    assert [entry["number"] for entry in before] == [1, 4, 5, 3]
    assert new.log("staging", "cnn").foreign == ()


def test_a_used_entry_number_is_reported(new: Store, exported: Path, tmp_path: Path) -> None:
    add_candidate(new, "cnn", 1)
    promotion.promote("cnn", "staging", reason="because", store=new)
    new._client.delete_model_version("staging.cnn", "1")
    with pytest.raises(LostRace, match=r"staging\.cnn: number 1 is already used.*delete the registered model"):
        transfer.import_(exported, tmp_path / "files", new)
    assert facts(new) == []


def test_an_import_finds_bytes_among_candidates_of_the_new_server(new: Store, exported: Path) -> None:
    with pytest.raises(Refused, match=r"(?s)nothing was imported, because the files .*staging.cnn, entry 4: sha256"):
        transfer.import_(exported, None, new)
    assert new.versions.aliases("staging.cnn") == {}
    for factor in (3, 2, 1):
        add_candidate(new, "cnn", factor)
    transfer.import_(exported, None, new)
    assert overview.check("cnn", "staging", new).met


def test_changed_bytes_are_rejected_before_writing(new: Store, exported: Path, tmp_path: Path) -> None:
    manifest = json.loads(exported.read_text().splitlines()[-1])["manifest"]
    with open(tmp_path / "files" / manifest / "model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(Refused, match=r"model\.onnx has changed"):
        transfer.import_(exported, tmp_path / "files", new)
    assert new.environments("cnn") == []


def test_files_with_another_digest_are_rejected(new: Store, exported: Path, tmp_path: Path) -> None:
    one, two = sorted({json.loads(text)["manifest"] for text in exported.read_text().splitlines()})[:2]
    for name, other in ((one, "x"), (two, one), ("x", two)):
        os.rename(tmp_path / "files" / name, tmp_path / "files" / other)
    with pytest.raises(Refused, match=r"but .* was recorded"):
        transfer.import_(exported, tmp_path / "files", new)


def test_another_history_is_not_overwritten(new: Store, exported: Path, tmp_path: Path) -> None:
    add_candidate(new, "cnn", 7)
    promotion.promote("cnn", "staging", reason="mine", store=new)
    before = facts(new)
    with pytest.raises(
        Refused, match=r"staging\.cnn has another history in this store, from entry 1 on: nothing was imported"
    ):
        transfer.import_(exported, tmp_path / "files", new)
    assert (facts(new), facts(new, "production")) == (before, [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda text: text.replace('"schema_version":1', '"schema_version":2'),
            "line 1 is not a valid entry: schema_version",
        ),
        (lambda text: text.replace('"sha256":"', '"sha256":"../'), "line 1 is not a valid entry: sha256"),
        (lambda text: text.replace('"model":"cnn"', '"model":"../cnn"'), "line 1: '../cnn' is not a valid name"),
        (lambda text: text + text, "not in order, or one is listed twice"),
        (lambda text: "nonsense\n", "line 1 is not a valid entry"),
    ],
)
def test_an_invalid_export_file_is_rejected(
    new: Store, exported: Path, tmp_path: Path, spoil: Callable[[str], str], message: str
) -> None:
    exported.write_text(spoil(exported.read_text()))
    with pytest.raises(UsageError, match=message):
        transfer.import_(exported, tmp_path / "files", new)


def test_exported_files_match_the_published_files(exported: Path, tmp_path: Path) -> None:
    folders = sorted((tmp_path / "files").iterdir())
    assert len(folders) == 3
    for folder in folders:
        check_folder(folder, manifest=folder.name)


def test_the_commands_move_a_history(
    old: Store, tmp_path: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text, _ = onward("export-log", "cnn", "--files", str(tmp_path / "files"))
    assert code == 0
    assert json.loads(onward("export-log", "cnn", "--json")[1]) == [json.loads(line) for line in text.splitlines()]
    (tmp_path / "log.jsonl").write_text(text)
    (tmp_path / "new").mkdir()
    fresh_store(tmp_path / "new", monkeypatch)
    code, out, _ = onward("import-log", str(tmp_path / "log.jsonl"), "--files", str(tmp_path / "files"))
    assert code == 0
    assert "staging of cnn: 5 entries imported, 0 existed already" in out
    assert onward("export-log", "nope")[0] == 2
    assert onward("import-log", "absent.jsonl")[0] == 2
