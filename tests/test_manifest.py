"""The digests that pin a folder, and what is refused: without a store, and with files of any names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.artifact.manifest import (
    MANIFEST,
    check_folder,
    content_digest,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from onward.registry.errors import Refused
from onward.registry.evidence.records import FileDigest
from onward.registry.files import sha256_file
from tests.store_factory import scale_model
from tests.test_external_data import scaled

FILES = {"MLmodel": b"flavors", "validation/inputs.npz": b"in", "validation/deep/outputs.npz": b"out", "empty": b""}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A version of a graph for every runtime and one for a provider of its own, and of files that are no model."""
    root = tmp_path / "version"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    scale_model(root / "model.onnx", 2)
    (root / "providers" / "openvino").mkdir(parents=True)
    scale_model(root / "providers" / "openvino" / "model.onnx", 3)
    write_manifest(root)
    return root


GRAPHS = ["model.onnx", "providers/openvino/model.onnx"]


def named(files: list[FileDigest]) -> list[str]:
    return sorted(file.path for file in files)


def test_the_manifest_names_every_file_with_its_digest_in_one_order(folder):
    said = json.loads((folder / MANIFEST).read_text())
    assert [file["path"] for file in said] == sorted([*FILES, *GRAPHS], key=lambda name: Path(name).parts)
    for file in said:
        content = (folder / file["path"]).read_bytes()
        assert (file["sha256"], file["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [file.model_dump() for file in read_manifest(folder)] == said
    # Its own digest is pinned: made anew from the same files, it has to be the same to the last byte.
    assert (folder / MANIFEST).read_text() == json.dumps(said, indent=2) + "\n"
    assert write_manifest(folder) == manifest_digest(folder) == sha256_file(folder / MANIFEST)


def test_what_is_whole_is_let_pass_and_its_model_files_are_told(folder):
    model = check_folder(folder)
    assert named(model) == GRAPHS
    assert check_folder(folder, content_digest(model), manifest_digest(folder)) == model


def change_a_file(folder: Path) -> str:
    (folder / "validation" / "inputs.npz").write_bytes(b"IN")
    return r"validation/inputs\.npz has changed"


def change_the_model(folder: Path) -> str:
    scale_model(folder / "model.onnx", 5)
    return r"model\.onnx has changed"


def add_a_file(folder: Path) -> str:
    (folder / "validation" / "more").write_bytes(b"")
    return "validation/more is not in the manifest"


def add_a_graph(folder: Path) -> str:
    (folder / "providers" / "cuda").mkdir()
    shutil.copy(folder / "model.onnx", folder / "providers" / "cuda" / "model.onnx")
    return r"providers/cuda/model\.onnx is not in the manifest"


def add_a_manifest_below(folder: Path) -> str:
    (folder / "validation" / MANIFEST).write_text("[]")
    return "validation/manifest.json is not in the manifest"


def lose_a_file(folder: Path) -> str:
    (folder / "empty").unlink()
    return "empty is missing"


def rename_a_file(folder: Path) -> str:
    (folder / "MLmodel").rename(folder / "MLmodels")
    return "MLmodel is missing; MLmodels is not in the manifest"


SPOILS = [change_a_file, change_the_model, add_a_file, add_a_graph, add_a_manifest_below, lose_a_file, rename_a_file]


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_file_that_was_changed_added_or_lost_is_named(folder, spoil):
    pinned = manifest_digest(folder)
    message = spoil(folder)
    for sha256, manifest in ((None, ""), (None, pinned)):
        with pytest.raises(Refused, match=f"the files are not those that were published: {message}"):
            check_folder(folder, sha256, manifest)


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_manifest_that_was_written_anew_does_not_hide_it_where_it_was_pinned(folder, spoil):
    pinned, model = manifest_digest(folder), content_digest(check_folder(folder))
    spoil(folder)
    anew = write_manifest(folder)
    check_folder(folder)
    with pytest.raises(Refused, match=f"manifest.json has sha256 {anew}, but {pinned} was recorded"):
        check_folder(folder, manifest=pinned)
    if spoil in (change_the_model, add_a_graph):
        with pytest.raises(Refused, match=f"the model has sha256 [0-9a-f]+, but {model} was recorded"):
            check_folder(folder, model)
    else:
        check_folder(folder, model)


def test_every_problem_is_named_at_once_and_in_one_order(folder):
    for name in "abcdef":
        (folder / f"kept-{name}").write_text("x")
        (folder / f"lost-{name}").write_text("x")
    write_manifest(folder)
    for name in "fbdace":
        (folder / f"kept-{name}").write_text("y")
        (folder / f"lost-{name}").rename(folder / f"new-{name}")
    with pytest.raises(Refused) as refused:
        check_folder(folder)
    wanted = [f"lost-{name} is missing" for name in "abcdef"]
    wanted += [f"new-{name} is not in the manifest" for name in "abcdef"]
    wanted += [f"kept-{name} has changed" for name in "abcdef"]
    assert str(refused.value) == f"the files are not those that were published: {'; '.join(wanted)}"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "files cannot be checked"), ("", "cannot be read"), ("[", "cannot be read"), ("{}", "cannot be read"),
     ('[{"path": "a"}]', "cannot be read"), ("[]", "the files are not those")],
)  # fmt: skip
def test_a_manifest_that_says_nothing_lets_nothing_pass(folder, text, message):
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text)
    with pytest.raises(Refused, match=message):
        check_folder(folder)
    if text is None:
        with pytest.raises(Refused, match=r"version: manifest\.json is missing"):
            manifest_digest(folder)


def link_to_a_file(folder: Path, elsewhere: Path) -> str:
    shutil.move(folder / "MLmodel", elsewhere)
    (folder / "MLmodel").symlink_to(elsewhere)
    return "MLmodel is a link"


def link_to_a_folder(folder: Path, elsewhere: Path) -> str:
    shutil.move(folder / "validation", elsewhere)
    (folder / "validation").symlink_to(elsewhere)
    return "validation is a link; links are refused"


def link_below(folder: Path, elsewhere: Path) -> str:
    elsewhere.mkdir()
    (folder / "validation" / "deep" / "x").symlink_to(elsewhere)
    return "validation/deep/x is a link; links are refused"


def link_the_manifest(folder: Path, elsewhere: Path) -> str:
    shutil.move(folder / MANIFEST, elsewhere)
    (folder / MANIFEST).symlink_to(elsewhere)
    return "manifest.json is a link"


def add_a_pipe(folder: Path, elsewhere: Path) -> str:
    os.mkfifo(folder / "validation" / "pipe")
    return "pipe is not a regular file"


@pytest.mark.parametrize(
    "spoil", [link_to_a_file, link_to_a_folder, link_below, link_the_manifest, add_a_pipe], ids=lambda s: s.__name__
)
def test_what_is_no_file_of_its_own_is_refused_and_no_link_is_followed(folder, tmp_path, spoil):
    message = spoil(folder, tmp_path / "elsewhere")
    with pytest.raises(Refused, match=message):
        check_folder(folder)
    with pytest.raises(Refused, match=message):
        write_manifest(folder) if spoil is not link_the_manifest else manifest_digest(folder)


def test_what_mlflow_adds_to_a_download_is_no_file_of_the_version_at_the_top_alone(folder):
    (folder / "registered_model_meta").write_text("model_name: cnn")
    pinned = manifest_digest(folder)
    check_folder(folder, manifest=pinned)
    assert write_manifest(folder) == pinned
    (folder / "validation" / "registered_model_meta").write_text("x")
    with pytest.raises(Refused, match="validation/registered_model_meta is not in the manifest"):
        check_folder(folder)


def test_a_folder_that_cannot_be_listed_is_an_error_and_no_empty_one(folder, monkeypatch):
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        check_folder(folder)
    with pytest.raises(PermissionError):
        write_manifest(folder)


def test_the_data_that_a_graph_refers_to_belongs_to_the_model(tmp_path):
    main = scaled(tmp_path / "version", ["data/weights.bin"])
    (main.rename(main.with_name("model.onnx")).parent / "notes").write_text("location")
    folder = main.parent
    write_manifest(folder)
    assert named(check_folder(folder)) == ["data/weights.bin", "model.onnx"]
    sha256 = content_digest(check_folder(folder))
    (folder / "data" / "weights.bin").write_bytes(bytes(32))
    write_manifest(folder)
    with pytest.raises(Refused, match=f"but {sha256} was recorded"):
        check_folder(folder, sha256)
    (folder / "data" / "weights.bin").unlink()
    write_manifest(folder)
    with pytest.raises(Refused, match=r"weights\.bin"):
        check_folder(folder)


def test_a_graph_that_uses_a_file_of_the_manifest_alone_is_whole_and_one_beside_it_is_refused(tmp_path):
    main = scaled(tmp_path / "version", [MANIFEST])
    folder = main.rename(main.with_name("model.onnx")).parent
    write_manifest(folder)
    with pytest.raises(Refused):
        check_folder(folder)


def test_an_empty_graph_and_one_that_is_none_are_their_own_only_file(tmp_path):
    for content in (b"", b"no graph"):
        (tmp_path / "model.onnx").write_bytes(content)
        write_manifest(tmp_path)
        assert named(check_folder(tmp_path)) == ["model.onnx"]
    (tmp_path / "model.onnx").write_bytes(b"location of nothing")
    write_manifest(tmp_path)
    with pytest.raises(Refused, match=r"model\.onnx"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["other.onnx", "xmodel.onnx", "model.onnx.data", "providers/model.onnx", "providers/a/b/model.onnx",
             "providers/a.b/model.onnx", "a/model.onnx", "modelxonnx"],
)  # fmt: skip
def test_only_graphs_at_their_places_are_the_model(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    scale_model(folder / name, 9)
    write_manifest(folder)
    assert named(check_folder(folder)) == GRAPHS


@given(st.lists(st.binary(max_size=3).map(lambda b: hashlib.sha256(b).hexdigest()), min_size=1, max_size=5))
def test_a_model_is_known_by_its_bytes_whatever_its_files_are_called_and_however_they_are_ordered(digests):
    files = [FileDigest(path=f"{n}", sha256=digest, size_bytes=1) for n, digest in enumerate(digests)]
    other = [FileDigest(path=f"x{n}", sha256=digest, size_bytes=1) for n, digest in enumerate(sorted(digests))]
    wanted = digests[0] if len(digests) == 1 else hashlib.sha256("".join(f"{d}\n" for d in sorted(digests)).encode())
    assert content_digest(files) == content_digest(other) == (wanted if isinstance(wanted, str) else wanted.hexdigest())
