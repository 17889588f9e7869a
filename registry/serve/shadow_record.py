"""Keeps the evidence of a shadow: in the store with the version that it judges, and in this machine's cache."""

from __future__ import annotations

import hashlib
import logging

from onward.registry.errors import Refused
from onward.registry.evidence import shadow
from onward.registry.evidence.shadow import MINIMUM, ShadowEvidence
from onward.registry.files import write_atomically
from onward.registry.store import connection
from onward.registry.store.cache import cache
from onward.registry.store.store import Store

_LOG = logging.getLogger("onward.serve")


class ShadowRecord:
    """The place of the evidence of one candidate.

    Args:
        model: the registered model.
        target: the candidate's target, for messages.
    """

    def __init__(self, model: str, target: str) -> None:
        self._model, self._target, self._told = model, target, ""

    def keep(self, found: ShadowEvidence) -> None:
        """Write the evidence. If the store does not take it, that is logged once.

        A server that has just started does not replace evidence of more requests about the same two versions.
        """
        name = hashlib.sha256(f"{self._target}\n{found.environment}".encode()).hexdigest()[:32]
        try:
            file = cache() / "shadow" / f"{name}.json"
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(file, found.model_dump_json(indent=2).encode())
            self._store(found)
            self._told = ""
        except Exception as error:  # the server answers requests without it
            if str(error) != self._told:
                self._told = str(error)
                _LOG.warning(
                    "%s: the evidence of the shadow is in %s only, and no gate can use it: %s",
                    self._target, cache() / "shadow", error,
                )  # fmt: skip

    def _store(self, found: ShadowEvidence) -> None:
        """Write the tag of the candidate's version.

        Raises:
            OnwardError: the version does not exist any more, or the store does not allow it.
        """
        store = Store(connection.connect(create=False))
        version = store.candidate(self._model, int(found.version)) if found.version.isdecimal() else None
        if version is None or version.sha256 != found.sha256:
            raise Refused(f"{self._model} has no version {found.version} with these files (any more)")
        tag = f"{shadow.PREFIX}{found.environment}"
        for before in shadow.read({tag: version.evidence.get(tag, "")}):
            same = (before.sha256, before.live_sha256) == (found.sha256, found.live_sha256)
            if same and found.requests < min(MINIMUM, before.requests):
                return
        store.tag(self._model, int(found.version), tag, found.model_dump_json())
