"""Keeps a session at the version that is live in its environment. A version that fails any check never serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from onward.registry.artifact.replay import BUNDLE, replay_in_subprocess
from onward.registry.errors import OnwardError, Refused, StoreUnreachable
from onward.registry.inference.session import InferenceSession
from onward.registry.serve.refusals import Refusals
from onward.registry.serve.versions import folder_of, version_of, warm_up
from onward.registry.store.resolve import resolve

if TYPE_CHECKING:
    from onward.registry.inference.model import Loaded
    from onward.registry.serve.events import Events
    from onward.registry.serve.metrics import Metrics
    from onward.registry.store.resolve import Target

# Seconds before a refused version is tried again, because a full disk or a broken download passes. The time doubles
# with each refusal, because each try downloads and replays the version.
FIRST_RETRY_S = 10.0
LAST_RETRY_S = 600.0


class Follower:
    """The session of one target.

    Args:
        target: MODEL@ENVIRONMENT, MODEL/VERSION, or a path.
        name: the name in URLs.
        events: receives what happens.
        metrics: where swaps and refusals are counted.
        session: the loaded session; None for a candidate, which is loaded with the first `follow`, and may fail.
    """

    def __init__(
        self, target: str, name: str, events: Events, metrics: Metrics, session: InferenceSession | None = None
    ) -> None:
        self._is_candidate = session is None
        self.target, self.name, self.events, self._metrics = target, name, events, metrics
        self._session = session
        self.reachable = session is None or not session.loaded.origin.get("cached", False)
        self.ready = False
        self._refusals = Refusals(target)
        self._refused, self._retry_at, self._retry_s = 0, 0.0, FIRST_RETRY_S
        self._seen: Target | None = None  # by the first look of a candidate
        self._text = ""
        self._recorded = True  # a server on this host may have recorded a refusal before

    @property
    def session(self) -> InferenceSession:
        """The session, which must be loaded."""
        assert self._session is not None
        return self._session

    @property
    def loaded(self) -> Loaded | None:
        """The model that is loaded, replayed and warmed up; None if there is none."""
        return self._session.loaded if self._session is not None and self.ready else None

    def start(self) -> None:
        """Replay the recorded inputs on this host and warm the model up; then it is ready.

        Raises:
            Refused: the model does not repeat its recorded answers here.
        """
        loaded = self.session.loaded
        folder = folder_of(loaded)
        if (folder / BUNDLE).is_dir() or loaded.origin.get("version"):
            met, detail = replay_in_subprocess(folder, loaded.providers[0], allow_custom_ops=loaded.allow_custom_ops)
            if not met:
                problem = f"version {version_of(loaded)} does not repeat its answers here: {detail}"
                self._refusals.add(int(loaded.origin.get("entry", 0)), int(loaded.origin.get("version") or 0), problem)
                raise Refused(f"{self.target}: {problem}")
        warm_up(loaded)
        self.ready = True
        words = "" if self.reachable else "; the registry cannot be reached, and this version was live at the last look"
        self.events.note(self.target, "loaded", f"version {version_of(loaded)} on {loaded.providers[0]}{words}")
        if self.reachable:
            self._clear()

    def follow(self) -> bool:
        """Load the version that is live now, if it is another one. A version that fails stays out.

        Returns:
            whether another version is loaded now.
        """
        try:
            changed = self._refresh() if self.ready else self._first()
        except StoreUnreachable as error:
            if self.reachable:
                self.events.note(self.target, "unreachable", f"{self._stays()}: {error}")
            self.reachable = False
            return False
        except (OnwardError, OSError) as error:
            self.reachable = True
            self._refuse(str(error))
            return False
        self.reachable = True
        if changed and not self._is_candidate:
            self._metrics.count((self.name, version_of(self.session.loaded)), onward_swaps=1)
        if self._recorded and self._current:
            self._clear()
        return changed

    def _clear(self) -> None:
        """Forget refusals, because the live version is loaded."""
        self._text, self._refused, self._retry_s, self._recorded = "", 0, FIRST_RETRY_S, False
        self._refusals.clear()

    @property
    def _current(self) -> bool:
        """Whether the live entry is loaded."""
        live = self._live
        return self.ready and (live is None or live.entry == self.session.loaded.origin.get("entry"))

    def _first(self) -> bool:
        """Load the first version of a candidate. A refused one is tried again later, another one at once."""
        self._seen = None
        self._seen = resolve(self.target) if "@" in self.target else None
        entry = self._seen.entry if self._seen else 0
        if entry == self._refused and time.monotonic() < self._retry_at:
            return False
        self._session = InferenceSession(self.target)
        self._session.seen_live = self._seen
        self.start()
        return False

    @property
    def _live(self) -> Target | None:
        """What was live at the last look, also if it could not be loaded; None if that is not known."""
        return self.session.seen_live if self.ready else self._seen

    def _refresh(self) -> bool:
        before = version_of(self.session.loaded)
        changed = self.session.refresh(prepare=warm_up, skip_entry=self._skipped())
        if changed:
            text = f"version {version_of(self.session.loaded)} after version {before}"
            self.events.note(self.target, "loaded", text)
        return changed

    def _skipped(self) -> int:
        """The entry that is not tried again yet; 0 for none."""
        live = self._live
        waits = self._refused and live is not None and live.entry == self._refused
        return self._refused if waits and time.monotonic() < self._retry_at else 0

    def _refuse(self, problem: str) -> None:
        live = self._live
        entry = live.entry if live else 0
        if entry != self._refused:
            self._retry_s = FIRST_RETRY_S
        self._refused, self._retry_at = entry, time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        text = f"{self._stays()}: {problem}"
        if text == self._text:
            return
        self._text, self._recorded = text, True
        before = version_of(self.session.loaded) if self.loaded else ""
        self._metrics.count((self.name, before), onward_refused_versions=1)
        self.events.note(self.target, "refused", text)
        self._refusals.add(entry, live.version if live else 0, problem)

    def _stays(self) -> str:
        return f"version {version_of(self.session.loaded)} stays" if self.loaded else "no version is loaded"
