"""Addresses of stores and webhooks, without what must not be shown: nobody's name or password is ever printed.

A password may hold any character, an `@`, `/` or `#` that should have been percent-encoded among them, and the address
may be none at all. So nothing here parses an address by the rules: all before the last `@` may be secret.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(/{0,2})(.*)", re.DOTALL)
_SQLITE = "sqlite:///"
# An address in somebody else's words, up to the white space after it.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*")
# Variables that hold an address or a password.
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HIDDEN = "***"


def scheme(uri: str) -> str:
    """The scheme of an address in small letters, without a driver (`postgresql` of `postgresql+psycopg`); "" where it
    has none."""
    found = _SCHEME.fullmatch(uri)
    return found[1].lower().partition("+")[0] if found else ""


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None where the store is another, or in memory. Read as SQLAlchemy reads the URI."""
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return None if name in ("", ":memory:") or name.startswith("file:") else Path(unquote(name))


def without_credentials(uri: str) -> str:
    """`uri` without user, password, query and fragment; of an SQLite store, the name of its file alone."""
    file = sqlite_file(uri)
    if file is not None:
        return f"{_SQLITE}{file.name}"
    start, rest = _parts(uri)
    shown = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    # What stands where a port should, and is none, may be a password whose `@` is missing.
    place, slash, path = shown.partition("/")
    address, colon, port = place.rpartition(":")
    if colon and "]" not in port and not port.isdecimal():
        place, slash, path = address.partition(":")[0], "", ""
    return f"{start}{place}{slash}{path}"


def host(address: str) -> str:
    """The host of a webhook's address, of which all else may be secret; "" where it cannot be told for certain."""
    found = _SCHEME.fullmatch(address)
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", found[3] if found else "", re.DOTALL).groups()  # type: ignore[union-attr]
    name, _, port = authority.rpartition("@")[2].partition(":")
    return "" if "@" in rest or (port and not port.isdecimal()) else name


def _parts(uri: str) -> tuple[str, str]:
    """What an address begins with, and the rest. `name:password@host` begins with no scheme."""
    found = _SCHEME.fullmatch(uri)
    if not found or (found[2] != "//" and "@" in found[3]):
        return "", uri
    return f"{found[1]}:{found[2]}", found[3]


def hidden(text: str) -> str:
    """Somebody else's words, such as an exception's, without addresses and without what is secret in those in use.

    A library repeats parts of an address, in other letters or encodings: each word of what is secret goes.
    """
    text = _ADDRESS.sub(rf"\1{HIDDEN}", text)
    words = {word for secret in _secrets() for word in re.findall(r"\w+", secret)}
    for word in sorted(words, key=len, reverse=True):
        pattern = re.escape(word) if len(word) > 2 else rf"(?<!\w){re.escape(word)}(?!\w)"
        text = re.sub(pattern, HIDDEN, text, flags=re.IGNORECASE)
    return text


def _secrets() -> set[str]:
    """What is secret in the environment: user information and queries of addresses, passwords; decoded, too."""
    found = {os.environ.get(name, "") for name in _SECRETS}
    for uri in filter(None, map(os.environ.get, _ADDRESSES)):
        if sqlite_file(uri) is not None:
            continue
        _, rest = _parts(uri)
        before, at, after = rest.rpartition("@")
        found |= {before if at else "", after.partition("?")[2]}
        if not at and without_credentials(uri) != re.split(r"[?#]", uri)[0]:
            found.add(rest.partition(":")[2])  # what stands where a port should
    return found | {unquote(secret) for secret in found}
