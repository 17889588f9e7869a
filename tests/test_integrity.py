"""Only the published files are loaded: links, added files, options, tolerances, the cache."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from onward.registry.artifact.manifest import MANIFEST, check_folder, manifest_digest, write_manifest
from onward.registry.errors import Refused, UsageError
from onward.registry.files import sha256_file
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import overview, promotion
from onward.registry.store.cache import cache
from onward.registry.store.resolve import resolve
from onward.registry.store.store import Store
from tests.conftest import not_none
from tests.store_factory import add_candidate, artifacts_of, fresh_store, scale_model, version_for_two_providers

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = fresh_store(tmp_path, monkeypatch)
    for factor in (1, 2, 3):
        add_candidate(store, "cnn", factor)
    promotion.promote("cnn", "staging", 3, reason="because", store=store)
    return store


def cached() -> Path:
    return cache() / InferenceSession("cnn@staging").metadata.manifest


def add_link_to_folder(folder: Path, elsewhere: Path) -> None:
    elsewhere.mkdir()
    scale_model(elsewhere / "model.onnx", -666)
    (folder / "providers").mkdir()
    (folder / "providers" / "x").symlink_to(elsewhere)
    serving = {"cpu": {"file": "providers/x/model.onnx", "provider": "CPUExecutionProvider", "options": {}}}
    (folder / "serving.json").write_text(json.dumps(serving))


def link_to_file(folder: Path, elsewhere: Path) -> None:
    shutil.move(folder / "validation" / "tolerance.json", elsewhere)
    (folder / "validation" / "tolerance.json").symlink_to(elsewhere)


def widen_tolerance(folder: Path, elsewhere: Path) -> None:
    (folder / "validation" / "tolerance.json").write_text('{"rtol": 1e9, "atol": 1e9}')


def nest_a_manifest(folder: Path, elsewhere: Path) -> None:
    (folder / "providers" / "x").mkdir(parents=True)
    (folder / "providers" / "x" / MANIFEST).write_text("[]")


def add_serving_options(folder: Path, elsewhere: Path) -> None:
    serving = {"cpu": {"file": "model.onnx", "provider": "CPUExecutionProvider", "options": {"threads": 1}}}
    (folder / "serving.json").write_text(json.dumps(serving))


def add_a_pipe(folder: Path, elsewhere: Path) -> None:
    os.mkfifo(folder / "pipe")


def lose_a_file(folder: Path, elsewhere: Path) -> None:
    (folder / "validation" / "tolerance.json").unlink()


SPOILS = [add_link_to_folder, link_to_file, widen_tolerance, nest_a_manifest, add_serving_options, add_a_pipe]


def rewrite_manifest(folder: Path) -> None:
    """Rewrite the manifest as an attacker would, including files behind links."""
    write_over = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    lines = [
        {"path": p.relative_to(folder).as_posix(), "sha256": sha256_file(p), "size_bytes": p.stat().st_size}
        for p in write_over
    ]
    (folder / MANIFEST).write_text(json.dumps(lines))


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("rewritten", [False, True])
def test_a_changed_cached_version_is_rejected(
    store: Store, tmp_path: Path, spoil: Callable[[Path, Path], None], rewritten: bool
) -> None:
    folder = cached()
    spoil(folder, tmp_path / "elsewhere")
    if rewritten:
        rewrite_manifest(folder)
    with pytest.raises(Refused, match=r"cnn@staging: .*Delete .* to download it again"):
        InferenceSession("cnn@staging")


@pytest.mark.parametrize("spoil", [widen_tolerance, nest_a_manifest, add_serving_options], ids=lambda s: s.__name__)
def test_check_rejects_a_rewritten_manifest_in_the_store(
    store: Store, tmp_path: Path, spoil: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve("cnn@staging", store).source
    [folder] = [path.parent for path in Path("mlartifacts/environments/staging").rglob("MLmodel")]
    assert source.startswith("models:/m-")
    spoil(folder, tmp_path / "elsewhere")
    write_manifest(folder)
    found = overview.check("cnn", "staging", store)
    assert not found.met
    assert found.results[0].requirement == "digest"
    assert "manifest.json has sha256" in found.results[0].detail
    with pytest.raises(Refused, match=r"manifest\.json has sha256"):
        InferenceSession("cnn@staging")


def test_swapping_the_graphs_of_two_providers_changes_the_version(tmp_path: Path) -> None:
    folder = version_for_two_providers(tmp_path)
    pinned = manifest_digest(folder)
    check_folder(folder, manifest=pinned)
    one, two = folder / "model.onnx", folder / "providers" / "openvino" / "model.onnx"
    spare = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(spare)
    write_manifest(folder)
    check_folder(folder)
    with pytest.raises(Refused, match="has sha256"):
        check_folder(folder, manifest=pinned)


def test_promotion_and_rollback_pin_the_manifest(store: Store) -> None:
    promotion.promote("cnn", "staging", 1, reason="because", store=store)
    back = promotion.rollback("cnn", "staging", reason="because", store=store)
    entries = store.log("staging", "cnn").entries()
    assert [entry.manifest for entry in entries] == [not_none(store.candidate("cnn", n)).manifest for n in (3, 1, 3)]
    assert not_none(back.entry).manifest == manifest_digest(artifacts_of(store, "cnn", 3))


def test_a_candidate_changed_after_publication_is_rejected(store: Store) -> None:
    folder = artifacts_of(store, "cnn", 2)
    widen_tolerance(folder, folder)
    write_manifest(folder)
    with pytest.raises(Refused, match=r"cnn version 2: .*manifest\.json has sha256"):
        promotion.promote("cnn", "staging", 2, reason="because", force=True, store=store)


@pytest.mark.parametrize("spoil", [widen_tolerance, nest_a_manifest, lose_a_file], ids=lambda spoil: spoil.__name__)
def test_a_copy_that_differs_from_the_upload_is_never_deployed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path, Path], None]
) -> None:
    upload = store._client.log_model_artifacts

    def upload_and_spoil(model_id: str, folder: str) -> None:
        upload(model_id, folder)
        spoil(next(Path("mlartifacts").rglob(model_id)) / "artifacts", tmp_path / "elsewhere")

    with monkeypatch.context() as broken:
        broken.setattr(store._client, "log_model_artifacts", upload_and_spoil)
        with pytest.raises(Refused, match="the files are not those that were published"):
            promotion.promote("cnn", "staging", 2, reason="because", store=store)
    assert not_none(store.log("staging", "cnn").history.live).candidate_version == 3
    sha256 = not_none(store.candidate("cnn", 2)).sha256
    assert store.files.own_copies("staging", "cnn", sha256) == []
    again = promotion.promote("cnn", "staging", 2, reason="because", store=store)
    assert store.files.own_copies("staging", "cnn", sha256) == [not_none(again.entry).source]


def test_an_older_entry_is_readable_and_reports_what_it_does_not_pin(store: Store) -> None:
    store._client.delete_model_version_tag("staging.cnn", "1", "manifest")
    assert np.array_equal(InferenceSession("cnn@staging").predict(X), 3 * X)
    found = overview.check("cnn", "staging", store)
    assert found.met
    assert "pinned only the model files" in found.results[0].detail
    again = promotion.promote("cnn", "staging", 3, reason="pin all of it", store=store)
    assert (again.changed, not_none(again.entry).number) == (True, 2)
    assert "pins" not in overview.check("cnn", "staging", store).results[0].detail


def test_promoting_a_candidate_of_an_older_onward_pins_its_manifest(store: Store) -> None:
    store._client.delete_model_version_tag("cnn", "2", "manifest")
    promoted = promotion.promote("cnn", "staging", 2, reason="because", store=store).entry
    assert not_none(promoted).manifest == manifest_digest(artifacts_of(store, "cnn", 2))
    assert not promotion.promote("cnn", "staging", 2, reason="again", store=store).changed


def test_only_its_user_can_access_the_cache(store: Store) -> None:
    folder = cached()
    assert stat.S_IMODE(cache().stat().st_mode) == 0o700
    assert not any(path.stat().st_mode & 0o022 for path in (folder, *folder.rglob("*")))
    (folder / "model.onnx").chmod(0o666)
    with pytest.raises(Refused, match=r"users other than the cache's owner can write to model\.onnx"):
        InferenceSession("cnn@staging")
    (folder / "model.onnx").chmod(0o644)
    cache().chmod(0o777)
    with pytest.raises(UsageError, match=r"other users can write to .*`chmod 700"):
        InferenceSession("cnn@staging")


def test_a_cache_below_a_world_writable_folder_is_rejected(store: Store) -> None:
    cached()
    cache().parent.chmod(0o777)
    with pytest.raises(UsageError, match="all users can write to"):
        InferenceSession("cnn@staging")
    cache().parent.chmod(0o1777)
    InferenceSession("cnn@staging")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_user_is_rejected(store: Store) -> None:
    cached()
    os.chown(cache(), 12345, 12345)
    with pytest.raises(UsageError, match="belongs to another user"):
        InferenceSession("cnn@staging")


def test_a_read_only_cache_is_read_and_other_files_go_to_a_temporary_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cached()

    def read_only(*_: object, **__: object) -> NoReturn:
        raise OSError(30, "Read-only file system")

    before = sorted(path.name for path in cache().iterdir())
    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(
        tempfile,
        "mkdtemp",
        lambda *a, **k: read_only() if k.get("dir") == cache() else mkdtemp(*a, **k),
    )
    monkeypatch.setattr(
        tempfile,
        "TemporaryDirectory",
        _refusing(tempfile.TemporaryDirectory, cache(), read_only),
    )
    assert InferenceSession("cnn@staging").metadata.manifest == folder.name
    assert np.array_equal(InferenceSession("cnn/2").predict(X), 2 * X)
    assert np.array_equal(InferenceSession("cnn/2").predict(X), 2 * X)
    assert sorted(path.name for path in cache().iterdir()) == before


def _refusing(original: Callable[..., Any], folder: Path, refuse: Callable[[], NoReturn]) -> Callable[..., Any]:
    """A TemporaryDirectory that fails in `folder` like a read-only file system.

    File modes do not suffice, because root may run the tests.
    """
    return lambda *args, **options: refuse() if options.get("dir") == folder else original(*args, **options)
