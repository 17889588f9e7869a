"""The digests that pin a folder, and which folders are rejected, without a store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
def folder(tmp_path: Path) -> Path:
    """The folder of a version with a common graph, a graph for one provider, and other files."""
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


def test_the_manifest_lists_every_file_with_its_digest_in_a_fixed_order(folder: Path) -> None:
    said = json.loads((folder / MANIFEST).read_text())
    assert [file["path"] for file in said] == sorted([*FILES, *GRAPHS], key=lambda name: Path(name).parts)
    for file in said:
        content = (folder / file["path"]).read_bytes()
        assert (file["sha256"], file["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert [file.model_dump() for file in read_manifest(folder)] == said
    # The digest of the manifest is pinned, so the same files must give the same manifest bytes.
    assert (folder / MANIFEST).read_text() == json.dumps(said, indent=2) + "\n"
    assert write_manifest(folder) == manifest_digest(folder) == sha256_file(folder / MANIFEST)


def test_a_complete_folder_passes_and_its_model_files_are_returned(folder: Path) -> None:
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
def test_a_changed_added_or_missing_file_is_named(folder: Path, spoil: Callable[[Path], str]) -> None:
    pinned = manifest_digest(folder)
    message = spoil(folder)
    for sha256, manifest in ((None, ""), (None, pinned)):
        with pytest.raises(Refused, match=f"the files are not those that were published: {message}"):
            check_folder(folder, sha256, manifest)


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_a_rewritten_manifest_does_not_pass_if_the_manifest_was_pinned(
    folder: Path, spoil: Callable[[Path], str]
) -> None:
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


def test_all_problems_are_named_together_in_a_fixed_order(folder: Path) -> None:
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
def test_an_invalid_manifest_is_rejected(folder: Path, text: str | None, message: str) -> None:
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
def test_links_and_special_files_are_rejected_and_not_followed(
    folder: Path, tmp_path: Path, spoil: Callable[[Path, Path], str]
) -> None:
    message = spoil(folder, tmp_path / "elsewhere")
    with pytest.raises(Refused, match=message):
        check_folder(folder)
    with pytest.raises(Refused, match=message):
        write_manifest(folder) if spoil is not link_the_manifest else manifest_digest(folder)


def test_the_file_that_mlflow_adds_is_ignored_only_at_the_top_level(folder: Path) -> None:
    (folder / "registered_model_meta").write_text("model_name: cnn")
    pinned = manifest_digest(folder)
    check_folder(folder, manifest=pinned)
    assert write_manifest(folder) == pinned
    (folder / "validation" / "registered_model_meta").write_text("x")
    with pytest.raises(Refused, match="validation/registered_model_meta is not in the manifest"):
        check_folder(folder)


def test_an_unreadable_folder_is_an_error_and_not_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        check_folder(folder)
    with pytest.raises(PermissionError):
        write_manifest(folder)


def test_external_data_of_a_graph_belongs_to_the_model(tmp_path: Path) -> None:
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


def test_a_graph_may_only_use_files_of_the_manifest(tmp_path: Path) -> None:
    main = scaled(tmp_path / "version", [MANIFEST])
    folder = main.rename(main.with_name("model.onnx")).parent
    write_manifest(folder)
    with pytest.raises(Refused):
        check_folder(folder)


def test_an_empty_or_invalid_graph_is_its_only_file(tmp_path: Path) -> None:
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
def test_only_graphs_at_known_paths_belong_to_the_model(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    scale_model(folder / name, 9)
    write_manifest(folder)
    assert named(check_folder(folder)) == GRAPHS


@given(st.lists(st.binary(max_size=3).map(lambda b: hashlib.sha256(b).hexdigest()), min_size=1, max_size=5))
def test_the_model_digest_depends_only_on_bytes_and_not_on_names_or_order(
    digests: list[str],
) -> None:
    files = [FileDigest(path=f"{n}", sha256=digest, size_bytes=1) for n, digest in enumerate(digests)]
    other = [FileDigest(path=f"x{n}", sha256=digest, size_bytes=1) for n, digest in enumerate(sorted(digests))]
    wanted = digests[0] if len(digests) == 1 else hashlib.sha256("".join(f"{d}\n" for d in sorted(digests)).encode())
    assert content_digest(files) == content_digest(other) == (wanted if isinstance(wanted, str) else wanted.hexdigest())
