"""A bad row affects only itself: foreign rows, hand-edited tags, imported entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.errors import UsageError
from onward.registry.operations import promotion, pruning, transfer
from onward.registry.store import schema
from onward.registry.store.store import Store
from onward.registry.trust.entry_signatures import Signer
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, fresh_store

TAGS = {
    "schema": "1", "kind": "promote", "key": "k", "base": "0", "sha256": "a" * 64, "candidate": "1", "actor": "ann",
    "reason": "because", "at": "2026-01-02T03:04:05+00:00", "evidence": "{}",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    promotion.promote("cnn", "staging", 1, reason="because", store=store)
    return store


class Row:
    name, version, source, creation_timestamp, current_stage = "staging.cnn", 1, "models:/m-1", 0, None
    run_link = None

    def __init__(self, **tags: str) -> None:
        self.tags = {**TAGS, **tags}


@pytest.mark.parametrize(
    "tags",
    [
        {"schema": "²"}, {"gates": "[" * 100_000}, {"gates": "{}"}, {"evidence": "[1]"}, {"evidence": '{"a": {}}'},
        {"candidate": str(10**23)}, {"candidate": "-1"}, {"base": str(10**23)}, {"base": "-1"}, {"restores": "9" * 99},
        {"at": "yesterday"}, {"at": "2026-01-02T03:04:05"}, {"at": "2026-01-02"}, {"sha256": "../../etc/passwd"},
        {"sha256": "A" * 64}, {"kind": "delete"}, {"key": ""}, {"forced": "perhaps"}, {"manifest": "x"}, {"seen": "-7"},
    ],
)  # fmt: skip
def test_invalid_tags_are_not_parsed_as_an_entry(tags: dict[str, str]) -> None:
    entry = schema.from_version(Row(**tags))
    if "schema" in tags:
        assert entry is not None
    else:
        assert entry is None
    log = schema.parse_log("staging.cnn", [Row(**tags)], {})
    assert log.history.live == entry


@given(st.dictionaries(st.sampled_from([*TAGS, "gates", "restores", "seen", "manifest", "signature"]), st.text()))
def test_arbitrary_tags_do_not_break_the_log(tags: dict[str, str]) -> None:
    for signers in ({}, _signers()):
        log = schema.parse_log("staging.cnn", [Row(**tags)], signers)
        assert len(log.entries()) + len(log.foreign) + len(log.newer) == 1


def _signers() -> dict[str, Signer]:
    from onward.registry.trust.entry_signatures import Signer

    return {"ann": Signer(key="A" * 43 + "=")}


@pytest.mark.parametrize(
    "name", ["production.bob's model", "staging.a b", 'production."x"', "staging.x'; drop", "staging."]
)
def test_a_foreign_model_is_listed_and_breaks_no_command(store: Store, onward: Command, name: str) -> None:
    store._client.create_registered_model(name)
    for _ in range(2):
        store._client.create_model_version(name, source="file:///tmp/x")
    code, out, err = onward("status")
    assert (code, err) == (0, "")
    assert "is not Onward's, and is ignored" in out
    assert [model for model in json.loads(onward("status", "--json")[1]) if model["foreign"]]
    assert onward("reconcile")[:2] == (0, "Everything agrees with the logs.\n")
    assert onward("prune", "cnn", "--older-than", "1h")[0] == 0
    assert promotion.promote("cnn", "staging", 2, reason="because", store=store).changed


def test_environments_with_invalid_names_are_ignored(store: Store) -> None:
    store._client.create_registered_model("o'brien.cnn")
    assert store.environments("cnn") == ["staging"]
    assert pruning.prune("cnn", "1h", dry_run=True, store=store).deleted == ()
    assert len(transfer.export(["cnn"], store=store)) == 1


@pytest.mark.parametrize("tags", [{"candidate": str(10**23)}, {"at": "yesterday"}, {"gates": "[" * 5000}])
def test_every_command_treats_a_hand_edited_row_as_foreign(store: Store, onward: Command, tags: dict[str, str]) -> None:
    for tag, value in tags.items():
        store._client.set_model_version_tag("staging.cnn", "1", tag, value)
    out = onward("status")[1]
    assert "version 1 in the log of cnn in staging is not an entry of Onward's, and does not count" in out
    assert onward("reconcile")[0] == 0
    assert onward("prune", "cnn", "--older-than", "1h")[0] == 0
    assert onward("history", "cnn")[0] == 0
    assert not_none(promotion.promote("cnn", "staging", 2, reason="because", store=store).entry).number == 2


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"at": "yesterday"}, "at"), ({"at": "2026-01-02T03:04:05"}, "at"),
        ({"number": 10**9}, "more than 100 numbers"),
        ({"number": 400}, "more than 100 numbers"), ({"number": 10**23}, "number"), ({"number": 0}, "number"),
        ({"candidate_version": -1}, "candidate_version"), ({"candidate_version": 10**23}, "candidate_version"),
        ({"base": 7}, "base is 7, but must be"), ({"restores": 3}, "an earlier entry"), ({"actor": "a\nb"}, "actor"),
        ({"reason": "a\n  9  boss promoted"}, "reason"), ({"kind": "rollback"}, "rollback must name the entry"),
        ({"sha256": "x"}, "sha256"), ({"evidence": {"a": 1}}, "evidence"), ({"key": ""}, "key"), ({"seen": 9}, "seen"),
    ],
)  # fmt: skip
def test_an_import_validates_every_field_before_writing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], where: str
) -> None:
    [line] = transfer.export(["cnn"], tmp_path / "files", store)
    (tmp_path / "log.jsonl").write_text(json.dumps({**line.model_dump(), **change}))
    (tmp_path / "new").mkdir()
    new = fresh_store(tmp_path / "new", monkeypatch)
    with pytest.raises(UsageError, match=where):
        transfer.import_(tmp_path / "log.jsonl", tmp_path / "files", new)
    assert new.log("staging", "cnn").newest == 0
