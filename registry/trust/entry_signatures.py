"""Who wrote an entry, proved: Ed25519 signatures by keys that an environment's `signers` name.

    public = create_key(Path("ann.pem"))            # ann keeps the file; params.yaml has `signers: {ann: <public>}`
    signers = {"ann": Signer(key=public)}
    key = own_key(signers, "production")            # of the file that ONWARD_SIGNING_KEY names
    signed = sign(draft, "production.cnn", key)
    proven(signed, "production.cnn", signers)

A signature is over all that an entry says and the log that it is said in. Left out are the number, which the server
gives, and where the server keeps the files, which their sha256 pins: so that a history can move to another server.
registry/trust/chain.py judges a whole log by the signatures of its entries.
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
    """Whose entries count: `key` is the public key in base64. `until` is set for a signer who has left: the entries
    that they wrote until then go on counting, and none that they write later does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    until: Moment | None = None

    @property
    def identity(self) -> bytes:
        """The key itself: two names with one identity are one person."""
        return base64.b64decode(self.key)

    def left_by(self, moment: str) -> bool:
        """Whether the signer had left at `moment`."""
        return self.until is not None and datetime.fromisoformat(moment) > datetime.fromisoformat(self.until)


def _written(value: Any) -> Any:
    """What params.yaml may say: the key alone, or {key: ..., until: ...} with a moment as YAML reads it."""
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
    """A private key, and the name that its public half has among the signers."""

    name: str
    private: Ed25519PrivateKey


def create_key(path: Path) -> str:
    """Make a key pair, write its private half to `path` (PEM, for its owner's eyes alone), and return the public half.

    Raises:
        UsageError: there is something at `path`, or it cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    write_private(path, private)
    return _public(private)


def write_private(path: Path, private: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
    """Write a private key as PEM, never over a file that is there.

    Raises:
        UsageError: there is something at `path`, or it cannot be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError:
        raise UsageError(f"{path}: there is a file already, and a key is never overwritten") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def own_key(signers: Signers, environment: str) -> Key:
    """The key of the file that ONWARD_SIGNING_KEY names.

    Raises:
        Refused: there is none, or its public half is none of the signers', or its signer has left.
        UsageError: the file holds no Ed25519 key.
    """
    now = datetime.now(UTC).isoformat()
    present = {name: signer for name, signer in signers.items() if not signer.left_by(now)}
    names = ", ".join(present) or "nobody any more"
    path = os.environ.get(KEY_FILE, "")
    if not path:
        raise Refused(f"{environment} counts only what {names} signed: set {KEY_FILE} to the file of your key")
    private = _read_private(Path(path))
    public = _public(private)
    for name, known in present.items():
        if known.identity == base64.b64decode(public):
            return Key(name, private)
    raise Refused(f"{environment} counts only what {names} signed, and the key in {path} is none of theirs")


def sign(draft: AnyDraft, registered: str, key: Key) -> AnyDraft:
    """The same, signed, for the log of the registered model `registered`."""
    signature = base64.b64encode(key.private.sign(_content(draft, registered))).decode()
    return draft.model_copy(update={"signer": key.name, "signature": signature})


def proven(draft: Draft, registered: str, signers: Signers) -> bool:
    """Whether one of `signers` signed it while being a signer, as far as `at` tells; without any signers, everything is
    taken at its word."""
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
    """The digest that later entries know an entry by. It is over what a signature is over, so that another signature
    under the same words leaves it as it is."""
    return hashlib.sha256(_content(draft, registered)).hexdigest()


def link(draft: Draft, registered: str) -> str:
    """What an entry's row is created with as its `run_link`. MLflow lets nobody change that field of a row, while EDIT
    allows to change its tags: so the words of one entry cannot be put into the row of another."""
    return f"onward:{digest(draft, registered)}"


def is_public_key(text: str) -> bool:
    """Whether `text` can be a public key: 32 bytes in base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except (binascii.Error, ValueError):
        return False


def _content(draft: Draft, registered: str) -> bytes:
    # Without what has its default: a field that a later release adds leaves signatures of today valid.
    said = draft.model_dump(mode="json", include=Draft.model_fields.keys() - _UNSIGNED, exclude_defaults=True)
    return json.dumps({"log": registered, **said}, sort_keys=True, separators=(",", ":")).encode()


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
        raise UsageError(f"{KEY_FILE}: {path} holds no key as `onward keys create` makes it")
    return private


def _public(private: Ed25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()
