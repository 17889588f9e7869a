"""Files signed with model-signing and a private key, and environments that require such signatures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from onward.registry.artifact.manifest import MANIFEST, write_manifest
from onward.registry.errors import Refused, UsageError
from onward.registry.gates import policy, signed_files
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import approval, overview, promotion
from onward.registry.operations.promotion import Outcome
from onward.registry.store.store import Store
from onward.registry.trust import file_signatures
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, artifacts_of, fresh_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which staging accepts only files signed with release.pem."""
    store = fresh_store(tmp_path, monkeypatch)
    file_signatures.create_key(tmp_path / "release.pem")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    require(tmp_path, "release.pem.pub")
    add_candidate(store, "cnn", 1)
    return store


def require(folder: Path, key: str) -> None:
    section = {"staging": {"from": "candidate", "require": [], "files_key": key}}
    (folder / "params.yaml").write_text(yaml.safe_dump({"environments": section}))


def promote(store: Store, version: int = 1, **options: Any) -> Outcome:
    return promotion.promote("cnn", "staging", version, reason="because", store=store, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "version"
    (found / "validation").mkdir(parents=True)
    for name in ("model.onnx", "validation/inputs.npz"):
        (found / name).write_bytes(name.encode() * 100)
    write_manifest(found)
    return found


def test_only_signed_files_can_be_promoted_loaded_and_rolled_back_to(
    store: Store, tmp_path: Path, onward: Command
) -> None:
    with pytest.raises(Refused, match=r"cnn version 1: the files are not signed, .*onward sign-files MODEL VERSION"):
        promote(store, force=True)
    code, out, _ = onward("sign-files", "cnn", "1", "--key", "release.pem")
    assert (code, out.startswith("signed the files of cnn version 1 (sha256 ")) == (0, True)
    promote(store)
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(InferenceSession("cnn@staging").predict(x), x)
    signature = overview.check("cnn", "staging", store).results[1]
    assert (signature.requirement, signature.met, signature.detail) == ("signature", True, "by release.pem.pub")
    approval.sign_files("cnn", add_candidate(store, "cnn", 2), tmp_path / "release.pem", store=store)
    promote(store, 2)
    assert promotion.rollback("cnn", "staging", reason="because", store=store).version == 1


def test_files_signed_with_another_key_are_rejected_everywhere(store: Store, tmp_path: Path) -> None:
    file_signatures.create_key(tmp_path / "other.pem")
    approval.sign_files("cnn", 1, tmp_path / "other.pem", store=store)
    with pytest.raises(Refused, match=r"the signature of the files was not made with release\.pem\.pub"):
        promote(store)
    approval.sign_files("cnn", 1, tmp_path / "release.pem", store=store)
    promote(store)
    require(tmp_path, "other.pem.pub")
    with pytest.raises(Refused, match=r"not made with other\.pem\.pub"):
        InferenceSession("cnn@staging")
    assert InferenceSession("cnn/1").metadata.version == 1  # a candidate does not belong to an environment
    assert not overview.check("cnn", "staging", store).results[1].met
    approval.sign_files("cnn", add_candidate(store, "cnn", 2), tmp_path / "other.pem", store=store)
    promote(store, 2)
    with pytest.raises(Refused, match=r"not made with other\.pem\.pub"):
        promotion.rollback("cnn", "staging", to=1, reason="because", store=store)


@pytest.mark.parametrize("name", ["model.onnx", "MLmodel", "validation/outputs.npz", MANIFEST])
def test_a_changed_byte_is_rejected_even_if_the_manifest_was_rewritten(store: Store, tmp_path: Path, name: str) -> None:
    approval.sign_files("cnn", 1, tmp_path / "release.pem", store=store)
    promote(store)
    folder = artifacts_of(store, "staging.cnn", 1)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    evidence = not_none(store.head("staging", "cnn").history.live).evidence
    if name != MANIFEST:
        write_manifest(folder)
    with pytest.raises(Refused, match=f"those that were signed: .*{name} has changed"):
        signed_files.require(folder, evidence, "staging")
    with pytest.raises(Refused):
        InferenceSession("cnn@staging")
    assert not overview.check("cnn", "staging", store).met


def test_an_added_or_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    key = file_signatures.create_key(tmp_path / "k.pem")
    signature = file_signatures.sign(folder, tmp_path / "k.pem")
    file_signatures.verify(folder, signature, key)
    moved = folder.rename(tmp_path / "elsewhere")
    file_signatures.verify(moved, signature, key)
    (moved / "registered_model_meta").write_text("MLflow's")
    file_signatures.verify(moved, signature, key)
    (moved / "extra.py").write_text("import os")
    (moved / "validation" / "inputs.npz").unlink()
    with pytest.raises(Refused, match=r"extra\.py is not signed; validation/inputs\.npz is missing"):
        file_signatures.verify(moved, signature, key)


@pytest.mark.parametrize("forged", ["", "{}", "[]", "null", '{"mediaType": "x", "dsseEnvelope": 3}', "\x00"])
def test_an_invalid_signature_is_not_accepted(folder: Path, tmp_path: Path, forged: str) -> None:
    key = file_signatures.create_key(tmp_path / "k.pem")
    with pytest.raises(Refused, match="the signature of the files was not made with"):
        file_signatures.verify(folder, forged, key)


def test_invalid_keys_are_reported(store: Store, tmp_path: Path, folder: Path, onward: Command) -> None:
    (tmp_path / "no.pem").write_text("no key")
    for name in ("no.pem", "nowhere.pem"):
        code, _, err = onward("sign-files", "cnn", "1", "--key", name)
        assert (code, err.count("\n")) == (2, 1)
        assert f"--key {name}: not a private key" in err
    signature = file_signatures.sign(folder, tmp_path / "release.pem")
    with pytest.raises(UsageError, match=r"no\.pem: not a public key"):
        file_signatures.verify(folder, signature, tmp_path / "no.pem")
    for path in ("/etc/release.pub", "../release.pub"):
        with pytest.raises(UsageError, match=r"environments\.staging\.files_key: .* must be a path inside"):
            policy.parse({"staging": {"from": "candidate", "require": [], "files_key": path}})


def test_without_the_package_the_error_names_the_install_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_signatures.create_key(tmp_path / "k.pem")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match=r"pip install 'onward\[signing\]'"):
        file_signatures.sign(folder, tmp_path / "k.pem")


def test_the_model_signing_command_verifies_a_signature_of_onward(folder: Path, tmp_path: Path) -> None:
    key = file_signatures.create_key(tmp_path / "k.pem")
    (tmp_path / "k.sig").write_text(file_signatures.sign(folder, tmp_path / "k.pem"))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature"]
    done = subprocess.run(
        [*command, str(tmp_path / "k.sig"), "--public_key", str(key)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
