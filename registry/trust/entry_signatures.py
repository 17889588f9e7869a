"""Signs entries, and checks their Ed25519 signatures against the keys in an environment's `signers`.

    public = create_key(Path("ann.pem"))            # ann keeps the file; params.yaml has `signers: {ann: <public>}`
    signers = {"ann": Signer(key=public)}
    key = own_key(signers, "production")            # from the file that ONWARD_SIGNING_KEY names
    signed = sign(draft, "production.cnn", key)
    proven(signed, "production.cnn", signers)

A signature covers the content of an entry and the name of its log. It does not cover the entry's number, which the
server assigns, nor the place of the files on the server, whose content the sha256 pins. So a history can move to
another server. registry/trust/chain.py judges a whole log by the signatures of its entries.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from onward.registry.errors import Refused, UsageError
from onward.registry.log.entries import Draft, Moment

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "ONWARD_SIGNING_KEY"
_UNSIGNED = {"source", "signer", "signature"}
AnyDraft = TypeVar("AnyDraft", bound=Draft)


class Signer(BaseModel):
    """A person whose entries count.

    Attributes:
        key: The public key in base64.
        until: For a signer who has left, the time after which their entries do not count. Earlier entries still count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    until: Moment | None = None

    @property
    def identity(self) -> bytes:
        """The bytes of the key. Two names with the same key count as one person."""
        return base64.b64decode(self.key)

    def left_by(self, moment: str) -> bool:
        """Whether the signer had left at `moment`."""
        return self.until is not None and datetime.fromisoformat(moment) > datetime.fromisoformat(self.until)


def _written(value: Any) -> Any:
    """Convert what params.yaml may contain: only the key, or {key: ..., until: ...} with a time as YAML reads it."""
    if isinstance(value, str):
        return {"key": value}
    if isinstance(value, Mapping) and isinstance(value.get("until"), datetime):
        moment = value["until"]
        return {**value, "until": (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()}
    return value


Signers = Mapping[str, Signer]
ReadSigner = Annotated[Signer, BeforeValidator(_written)]


@dataclass(frozen=True)
class Key:
    """A private key, and the name of its public half among the signers."""

    name: str
    private: Ed25519PrivateKey


def create_key(path: Path) -> str:
    """Make a key pair and write the private half to a file in PEM format that only the owner can read.

    Args:
        path: The file to write.

    Returns:
        The public half in base64.

    Raises:
        UsageError: `path` exists or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    write_private(path, private)
    return _public(private)


def write_private(path: Path, private: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
    """Write a private key to a new file in PEM format.

    Args:
        path: The file to write.
        private: The private key.

    Raises:
        UsageError: `path` exists or cannot be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError:
        raise UsageError(f"{path}: the file exists, and a key file is never overwritten") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def own_key(signers: Signers, environment: str) -> Key:
    """Read the key from the file that ONWARD_SIGNING_KEY names.

    Args:
        signers: The environment's signers.
        environment: The environment's name, for messages.

    Returns:
        The private key with the signer's name.

    Raises:
        Refused: ONWARD_SIGNING_KEY is not set, or its key belongs to no signer or to one who has left.
        UsageError: The file contains no Ed25519 key.
    """
    now = datetime.now(UTC).isoformat()
    present = {name: signer for name, signer in signers.items() if not signer.left_by(now)}
    if not present:
        raise Refused(f"{environment} accepts no new entries: all its signers have left (`until` in params.yaml)")
    rule = f"{environment} accepts only entries signed by {', '.join(present)}"
    path = os.environ.get(KEY_FILE, "")
    if not path:
        raise Refused(f"{rule}: set {KEY_FILE} to the file of your key")
    private = _read_private(Path(path))
    public = _public(private)
    for name, known in present.items():
        if known.identity == base64.b64decode(public):
            return Key(name, private)
    raise Refused(f"{rule}, but the key in {path} belongs to none of them")


def sign(draft: AnyDraft, registered: str, key: Key) -> AnyDraft:
    """Sign a draft.

    Args:
        draft: The entry to sign.
        registered: The name of the log.
        key: The signer's key.

    Returns:
        A copy of the draft with `signer` and `signature`.
    """
    signature = base64.b64encode(key.private.sign(_content(draft, registered))).decode()
    return draft.model_copy(update={"signer": key.name, "signature": signature})


def proven(draft: Draft, registered: str, signers: Signers) -> bool:
    """Check the signature of an entry.

    Args:
        draft: The entry.
        registered: The name of the log.
        signers: The environment's signers. If there are none, every entry is accepted.

    Returns:
        Whether one of the signers signed it and had not left at the time `at`, which the author chose.
    """
    if not signers:
        return True
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    known = signers.get(draft.signer)
    if known is None or known.left_by(draft.at):
        return False
    try:
        signature = base64.b64decode(draft.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(known.identity).verify(signature, _content(draft, registered))
    except (InvalidSignature, ValueError):  # binascii.Error is a ValueError
        return False
    return True


def digest(draft: Draft, registered: str) -> str:
    """Compute the digest by which later entries refer to an entry.

    It covers the same content as a signature, so a second signature of the same content does not change it.

    Args:
        draft: The entry.
        registered: The name of the log.

    Returns:
        The sha256 in hexadecimal.
    """
    return hashlib.sha256(_content(draft, registered)).hexdigest()


def link(draft: Draft, registered: str) -> str:
    """Compute the `run_link` that an entry's row is created with.

    MLflow never changes this field of a row, while the permission EDIT allows changes of its tags. So the content of
    one entry cannot be copied into the row of another.

    Args:
        draft: The entry.
        registered: The name of the log.

    Returns:
        A text with the entry's digest.
    """
    return f"onward:{digest(draft, registered)}"


def is_public_key(text: str) -> bool:
    """Tell whether `text` has the form of a public key: 32 bytes in base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except (binascii.Error, ValueError):
        return False


def _content(draft: Draft, registered: str) -> bytes:
    # Fields at their default are left out, so that a field of a later release does not invalidate today's signatures.
    content = draft.model_dump(mode="json", include=Draft.model_fields.keys() - _UNSIGNED, exclude_defaults=True)
    return json.dumps({"log": registered, **content}, sort_keys=True, separators=(",", ":")).encode()


def _read_private(path: Path) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UsageError(f"{KEY_FILE}: {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{KEY_FILE}: {path} contains no Ed25519 key; `onward keys create` makes one")
    return private


def _public(private: Ed25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()
