"""Removes user names, passwords and other secrets from addresses of stores and webhooks before they are printed.

A password may contain any character, including an `@`, `/` or `#` that should be percent-encoded, and the address may
be malformed. So this module does not parse addresses by the standard: everything before the last `@` may be secret.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(/{0,2})(.*)", re.DOTALL)
_SQLITE = "sqlite:///"
# An address in a text, up to the next white space.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S*")
# The variables with an address, and those with a password.
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
HIDDEN = "***"


def scheme(uri: str) -> str:
    """Return the scheme of an address in lower case.

    Args:
        uri: The address.

    Returns:
        The scheme without a driver (`postgresql` for `postgresql+psycopg`); "" if there is none.
    """
    found = _SCHEME.fullmatch(uri)
    return found[1].lower().partition("+")[0] if found else ""


def sqlite_file(uri: str) -> Path | None:
    """Find the file of an SQLite store, with SQLAlchemy's rules for the address.

    Args:
        uri: The address of a store.

    Returns:
        The file; None if the store is in memory or is not SQLite.
    """
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return None if name in ("", ":memory:") or name.startswith("file:") else Path(unquote(name))


def without_credentials(uri: str) -> str:
    """Remove user, password, query and fragment from an address. For SQLite, only the file's name remains."""
    file = sqlite_file(uri)
    if file is not None:
        return f"{_SQLITE}{file.name}"
    start, rest = _parts(uri)
    shown = re.split(r"[?#]", rest.rpartition("@")[2])[0]
    # Text in the place of a port that is not a number may be a password with a missing `@`.
    place, slash, path = shown.partition("/")
    address, colon, port = place.rpartition(":")
    if colon and "]" not in port and not port.isdecimal():
        place, slash, path = address.partition(":")[0], "", ""
    return f"{start}{place}{slash}{path}"


def host(address: str) -> str:
    """Return the host of a webhook's address, all else of which may be secret; "" if the host is uncertain."""
    found = _SCHEME.fullmatch(address)
    authority, rest = re.fullmatch(r"([^/?#]*)(.*)", found[3] if found else "", re.DOTALL).groups()  # type: ignore[union-attr]
    name, _, port = authority.rpartition("@")[2].partition(":")
    return "" if "@" in rest or (port and not port.isdecimal()) else name


def _parts(uri: str) -> tuple[str, str]:
    """The start of an address (scheme and slashes) and the rest. `name:password@host` has no scheme."""
    found = _SCHEME.fullmatch(uri)
    if not found or (found[2] != "//" and "@" in found[3]):
        return "", uri
    return f"{found[1]}:{found[2]}", found[3]


def hidden(text: str) -> str:
    """Remove addresses and secrets from a text that Onward did not write, such as an exception's message.

    Libraries repeat parts of an address in another case or encoding, so each word of a secret is removed.

    Args:
        text: The text.

    Returns:
        The text with HIDDEN instead of addresses and words of the secrets in use.
    """
    text = _ADDRESS.sub(rf"\1{HIDDEN}", text)
    words = {word for secret in _secrets() for word in re.findall(r"\w+", secret)}
    for word in sorted(words, key=len, reverse=True):
        pattern = re.escape(word) if len(word) > 2 else rf"(?<!\w){re.escape(word)}(?!\w)"
        text = re.sub(pattern, HIDDEN, text, flags=re.IGNORECASE)
    return text


def _secrets() -> set[str]:
    """The secrets in the environment, raw and decoded: passwords, and user information and queries of addresses."""
    found = {os.environ.get(name, "") for name in _SECRETS}
    for uri in filter(None, map(os.environ.get, _ADDRESSES)):
        if sqlite_file(uri) is not None:
            continue
        _, rest = _parts(uri)
        before, at, after = rest.rpartition("@")
        found |= {before if at else "", after.partition("?")[2]}
        if not at and without_credentials(uri) != re.split(r"[?#]", uri)[0]:
            found.add(rest.partition(":")[2])  # the text in the place of a port
    return found | {unquote(secret) for secret in found}
