"""Tells the store that this server refused a version, if the server's user may write there."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime

from onward.registry.store import connection, refused
from onward.registry.store.schema import registered_name

_LOG = logging.getLogger("onward.serve")


class Refusals:
    """The refusals of one target.

    Args:
        target: MODEL@ENVIRONMENT. For another target, nothing is recorded.
    """

    def __init__(self, target: str) -> None:
        model, at, environment = target.partition("@")
        self._registered = registered_name(environment, model) if at else ""
        self._told = False

    def add(self, entry: int, version: int, text: str) -> None:
        """Record a refusal.

        Args:
            entry: the number of the refused entry; 0 if it is not known.
            version: the refused version; 0 if it is not known.
            text: why.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        found = refused.Refusal(host=socket.gethostname(), entry=entry, version=version, at=at, text=text)
        self._write(found)

    def clear(self) -> None:
        """Remove the record of this host, because the live version is loaded."""
        self._write(None)

    def _write(self, found: refused.Refusal | None) -> None:
        if not self._registered:
            return
        try:
            client = connection.connect(create=False)
            if found is None:
                refused.clear(client, self._registered, socket.gethostname())
            else:
                refused.write(client, self._registered, found)
            self._told = False
        except Exception as error:  # the server answers requests without it
            if not self._told or found is not None:
                _LOG.warning(
                    "%s: the store could not be told, so `onward status` on other machines shows %s: %s",
                    self._registered,
                    "no refusal" if found else "an old refusal, if there was one",
                    error,
                )
            self._told = True
