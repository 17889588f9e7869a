"""Keys and signatures without a store: departure of signers, the signed content, and key files."""

from __future__ import annotations

import base64
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from onward.registry.errors import Refused, UsageError
from onward.registry.log.entries import Draft
from onward.registry.trust import entry_signatures
from onward.registry.trust.entry_signatures import Key, ReadSigner, Signer, digest, is_public_key, own_key, proven, sign

LOG = "production.cnn"
PRIVATE = {name: Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n, name in enumerate(("ann", "bob"), 1)}
PUBLIC = {name: base64.b64encode(key.public_key().public_bytes_raw()).decode() for name, key in PRIVATE.items()}
SIGNERS = {name: Signer(key=key) for name, key in PUBLIC.items()}
AT = "2026-01-02T03:04:05+00:00"
DRAFT = Draft(
    kind="promote", key="k", base=3, sha256="a" * 64, candidate_version=4, source="models:/m-1", actor="ann",
    reason="because", at=AT, evidence={"quality": "0.9"},
)  # fmt: skip


class Read(BaseModel):
    signer: ReadSigner


def signed(name: str = "ann", draft: Draft = DRAFT) -> Draft:
    return sign(draft, LOG, Key(name, PRIVATE[name]))


def test_a_recorded_signature_stays_valid() -> None:
    assert digest(DRAFT, LOG) == "3b3b670a704a3b91d256af5acabfd9dcc51d0932d100746ae3ad96146e30b309"
    assert entry_signatures.link(DRAFT, LOG) == f"onward:{digest(DRAFT, LOG)}"
    assert entry_signatures._content(DRAFT, LOG) == (
        b'{"actor":"ann","at":"2026-01-02T03:04:05+00:00","base":3,"candidate_version":4,'
        b'"evidence":{"quality":"0.9"},"key":"k","kind":"promote","log":"production.cnn","reason":"because",'
        b'"sha256":"' + b"a" * 64 + b'"}'
    )


def test_only_the_key_of_the_signer_proves_an_entry() -> None:
    entry = signed()
    assert (entry.signer, proven(entry, LOG, SIGNERS)) == ("ann", True)
    assert not proven(entry, "staging.cnn", SIGNERS)
    assert not proven(entry, LOG, {"bob": SIGNERS["bob"]})
    assert not proven(entry, LOG, {"ann": SIGNERS["bob"]})
    assert not proven(DRAFT, LOG, SIGNERS)
    assert proven(DRAFT, LOG, {})
    assert not proven(entry.model_copy(update={"signer": "bob"}), LOG, SIGNERS)


@pytest.mark.parametrize("change", ["", "!", "\n", " "])
def test_a_signature_is_compared_exactly(change: str) -> None:
    entry = signed()
    changed = entry.model_copy(update={"signature": entry.signature + change})
    assert proven(changed, LOG, SIGNERS) == (change == "")
    assert not proven(entry.model_copy(update={"signature": change}), LOG, SIGNERS)


def test_the_digest_depends_on_the_fields_and_not_on_the_signature() -> None:
    for same in (signed("ann"), signed("bob"), DRAFT.model_copy(update={"source": "models:/m-2"})):
        assert digest(same, LOG) == digest(DRAFT, LOG)
    changes: list[dict[str, Any]] = [
        {"reason": "x"},
        {"base": 4},
        {"evidence": {}},
        {"manifest": "b" * 64},
        {"seen": 3},
    ]
    for change in changes:
        assert digest(DRAFT.model_copy(update=change), LOG) != digest(DRAFT, LOG)
    assert digest(DRAFT, "staging.cnn") != digest(DRAFT, LOG)


@pytest.mark.parametrize(
    ("until", "counts"),
    [(None, True), (AT, True), ("2026-01-02T04:04:05+01:00", True), ("2026-01-02T03:04:04+00:00", False),
     ("2026-01-02T03:04:05+01:00", False), ("2027-01-01T00:00:00+00:00", True)],
)  # fmt: skip
def test_entries_of_a_departed_signer_count_up_to_the_departure(until: str | None, counts: bool) -> None:
    left = {"ann": Signer(key=PUBLIC["ann"], until=until)}
    assert proven(signed(), LOG, left) == counts
    assert left["ann"].left_by(AT) == (not counts)


def test_params_yaml_accepts_a_key_with_or_without_a_departure_time() -> None:
    key = PUBLIC["ann"]
    berlin = timezone(timedelta(hours=2))
    for written, until in (
        (key, None),
        ({"key": key}, None),
        ({"key": key, "until": "2026-01-02T03:04:05+02:00"}, "2026-01-02T03:04:05+02:00"),
        ({"key": key, "until": datetime(2026, 1, 2, 3, 4, 5)}, "2026-01-02T03:04:05+00:00"),
        ({"key": key, "until": datetime(2026, 1, 2, 3, 4, 5, tzinfo=berlin)}, "2026-01-02T03:04:05+02:00"),
    ):
        assert Read.model_validate({"signer": written}).signer == Signer(key=key, until=until)
    for wrong in (3, {"key": key, "since": AT}, {"until": AT}, {"key": key, "until": "2026-01-02"}, [key]):
        with pytest.raises(ValidationError):
            Read.model_validate({"signer": wrong})


@given(st.binary(max_size=40))
def test_a_public_key_is_32_bytes_in_base64(content: bytes) -> None:
    assert is_public_key(base64.b64encode(content).decode()) == (len(content) == 32)


@pytest.mark.parametrize("text", ["", "!", "ä", PUBLIC["ann"] + "\n", PUBLIC["ann"][:-1], PUBLIC["ann"] + "="])
def test_invalid_base64_is_not_a_public_key(text: str) -> None:
    assert is_public_key(text) is False


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "ann.pem"
    public = entry_signatures.create_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    private = load_pem_private_key(file.read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    assert base64.b64decode(public) == private.public_key().public_bytes_raw()
    assert is_public_key(public)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="the file exists"):
        entry_signatures.create_key(file)
    assert file.read_bytes() == before
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        entry_signatures.create_key(tmp_path / "nowhere" / "ann.pem")


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Return a function that writes the file of ONWARD_SIGNING_KEY."""

    def write(content: bytes) -> None:
        (tmp_path / "key.pem").write_bytes(content)
        monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / "key.pem"))

    return write


def pem(private: PrivateKeyTypes, encryption: KeySerializationEncryption | None = None) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def test_the_signing_key_determines_the_signer_name(key_file: Callable[[bytes], None]) -> None:
    for name, private in PRIVATE.items():
        key_file(pem(private))
        assert own_key(SIGNERS, "production").name == name
        assert pem(own_key(SIGNERS, "production").private) == pem(private)


def test_a_key_of_a_non_signer_is_rejected(key_file: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    key_file(pem(PRIVATE["bob"]))
    with pytest.raises(Refused, match=r"accepts only entries signed by ann, but the key in .* belongs to none of them"):
        own_key({"ann": SIGNERS["ann"]}, "production")
    soon, ago = (datetime.now(UTC) + timedelta(hours=h) for h in (1, -1))
    assert own_key({"bob": Signer(key=PUBLIC["bob"], until=soon.isoformat())}, "production").name == "bob"
    gone = {"bob": Signer(key=PUBLIC["bob"], until=ago.isoformat())}
    with pytest.raises(Refused, match=r"accepts no new entries: all its signers have left"):
        own_key(gone, "production")
    monkeypatch.delenv("ONWARD_SIGNING_KEY")
    with pytest.raises(Refused, match="production accepts only entries signed by ann, bob: set ONWARD_SIGNING_KEY"):
        own_key(SIGNERS, "production")


def test_an_invalid_key_file_is_reported(
    key_file: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for content in (
        b"",
        b"no key",
        pem(generate_private_key(SECP256R1())),
        pem(PRIVATE["ann"], BestAvailableEncryption(b"x")),
    ):
        key_file(content)
        with pytest.raises(UsageError, match=r"key\.pem contains no Ed25519 key"):
            own_key(SIGNERS, "production")
    monkeypatch.setenv("ONWARD_SIGNING_KEY", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match=r"none\.pem cannot be read: No such file"):
        own_key(SIGNERS, "production")
