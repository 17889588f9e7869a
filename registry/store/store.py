"""The deployment log and the candidates, kept in MLflow; registry/log/entries.py says what the log means, and
registry/store/schema.py how it lies there.

Creating a version of a registered model is the operation of MLflow that is atomic and hands out numbers that never
come back. Aliases and marks are written after an entry, and whoever writes next heals what an interrupted command left
of them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from onward.registry.errors import LostRace, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import Draft, Entry
from onward.registry.names import is_name
from onward.registry.store import log_memory, newest_run, relocate, webhooks
from onward.registry.store.artifacts import Files
from onward.registry.store.connection import as_default, connect, reachable
from onward.registry.store.model_versions import Versions
from onward.registry.store.schema import (
    LIVE,
    LOST,
    Drift,
    Log,
    RegisteredVersion,
    Version,
    find_drift,
    parse_log,
    registered_name,
    to_registered_version,
    to_tags,
)
from onward.registry.text import markdown
from onward.registry.trust.entry_signatures import link

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow gives up numbering a version after three collisions; then somebody else got in, or the next try does.
_APPENDS = 20
# One healing pass a change that others make meanwhile; more than a few in a row is a storm, and they heal after us.
_PASSES = 5


class Store:
    """What Onward keeps in MLflow; `versions` are the rows of it, as MLflow has them, `files` the bytes.

    The store is opened when something is first asked of it. Every method raises StoreUnreachable where it does not
    answer. With `create`, an embedded store is made where there is none; what only reads does without.
    """

    def __init__(self, client: MlflowClient | None = None, *, create: bool = True) -> None:
        self._given, self._create_store = client, create

    @cached_property
    def _client(self) -> MlflowClient:
        return self._given or connect(create=self._create_store)

    @property
    def uri(self) -> str:
        """Credentials included."""
        return str(self._client.tracking_uri)

    @cached_property
    def versions(self) -> Versions:
        return Versions(self._client)

    @cached_property
    def files(self) -> Files:
        return Files(self._client)

    # Reading

    def log(self, environment: str, model: str) -> Log:
        """The whole log of one environment of one model; an empty one where nothing was ever deployed."""
        log = self.parse(environment, model, self.versions.newest_first(registered_name(environment, model)))
        return self.remembered(environment, model, log)

    def head(self, environment: str, model: str, down_to: int | None = None) -> Log:
        """The newest part of a log: as much as says what is live, however long the log is, and entry `down_to`."""
        versions: list[Version] = []
        for page, floor in self.versions.pages(registered_name(environment, model)):
            versions += page
            log = self.parse(environment, model, versions, floor)
            if log.settled and (down_to is None or floor < down_to):
                break
        return self.remembered(environment, model, log)

    def remembered(self, environment: str, model: str, log: Log) -> Log:
        """The same log, with an alarm more where its environment has signers and what was live before is gone."""
        known = policy.read().get(environment)
        gone = log_memory.gone(self.uri, registered_name(environment, model), log) if known and known.signers else ""
        return replace(log, alarm=(*log.alarm, gone)) if gone else log

    def parse(self, environment: str, model: str, versions: Iterable[Version], floor: int = 0) -> Log:
        """The log that versions make up, as the signers of its environment, if it has any, would have it."""
        known = policy.read().get(environment)
        return parse_log(registered_name(environment, model), versions, known.signers if known else {}, floor)

    def entry(self, environment: str, model: str, number: int) -> Entry:
        """One deployment by its number, whether or not it counted.

        Raises:
            UsageError: there is none, or it would have to be signed and is not.
        """
        registered = registered_name(environment, model)
        version = self.versions.get(registered, number)
        log = self.parse(environment, model, [version] if version else [], floor=number - 1)
        if log.unproven or log.open:  # signed by somebody who has left, perhaps: then later entries vouch for it
            log = self.head(environment, model, down_to=number)
        if any(entry.number == number for entry in log.unproven):
            raise UsageError(f"entry {number} counts for nothing: none of the signers of {environment} signed it")
        found = next((entry for entry in log.history.entries() if entry.number == number), None)
        if found is None:
            raise UsageError(f"there is no entry {number} (any more); `onward history {model}` shows those there are")
        return found

    def approvals(self, environment: str, model: str, sha256: str) -> tuple[Entry, ...]:
        """Who approved of these bytes for an environment; with signers, those whose signature says so."""
        found = self.versions.tagged(registered_name(environment, model), kind="approve", sha256=sha256)
        return self.parse(environment, model, found).approvals

    def candidates(self, model: str) -> Iterator[RegisteredVersion]:
        """The versions that the pipeline registered, newest first; older ones are asked for when they are wanted."""
        return map(to_registered_version, self.versions.newest_first(model))

    def candidate(self, model: str, version: int) -> RegisteredVersion | None:
        """One version, or None where there is none (any more)."""
        found = self.versions.get(model, version)
        return to_registered_version(found) if found is not None else None

    def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]] | None:
        """Params and metrics of a run, or None where there is none (any more)."""
        from mlflow.exceptions import MlflowException

        if not run_id:
            return None
        with reachable():
            try:
                data = self._client.get_run(run_id).data
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return dict(data.params), dict(data.metrics)

    def metrics(self, run_id: str) -> dict[str, float]:
        """The metrics of a run; none where there is no such run (any more)."""
        _, metrics = self.run(run_id) or ({}, {})
        return metrics

    def failures(self) -> dict[str, str]:
        """The models whose newest pipeline run failed, each with the reason."""
        return newest_run.failures(self._client)

    def environments(self, model: str) -> list[str]:
        """The environments in which the store has a log of `model`, those that params.yaml does not name included."""
        names = [name.partition(".") for name in self.versions.named(f"%.{model}")]
        return sorted(environment for environment, _, name in names if name == model and is_name(environment))

    # Writing

    def append(self, environment: str, model: str, draft: Draft) -> Log:
        """Append an entry, and return the log in which it counted.

        Raises:
            LostRace: another entry was appended first; this one, if it was written at all, is marked as lost.
            StoreUnreachable: the store did not answer; the message says whether the entry may have been written.
        """
        registered = registered_name(environment, model)
        if draft.base == 0:
            self._create(registered)
        written = any(self._try_append(registered, draft) for _ in self._while_free(environment, model, draft))
        log = self._log_after(environment, model, draft)
        if written and log.history.won(draft.key):
            return log
        for entry in log.history.lost:
            if entry.key == draft.key:
                self._mark(registered, entry.number)
        got = "somebody else got there first"
        if log.alarm:
            got = f"something came in between that no signer signed ({'; '.join(log.alarm)})"
        raise LostRace(
            f"{registered}: {got}, and nothing of this counts. "
            f"Live now: {f'entry {log.history.live.number}, {log.history.live}' if log.history.live else 'nothing'}. "
            f"Look at `onward history {model}`, then run the command again if you still want it"
        )

    def approve(self, environment: str, model: str, draft: Draft) -> Entry:
        """Append an approval, which changes nothing that is live, and so has nobody to race with.

        Raises:
            StoreUnreachable: the store did not answer; the message says whether it may have been written.
        """
        registered = registered_name(environment, model)
        self._create(registered)
        if any(self._try_append(registered, draft) for _ in range(_APPENDS)):
            for approval in self.approvals(environment, model, draft.sha256):
                if approval.key == draft.key:
                    return approval
        raise StoreUnreachable(f"the MLflow store did not keep the approval in {registered}. Try again")

    def sign(self, environment: str, model: str, entry: Entry) -> None:
        """Keep the signature of an entry that is in the log already. The name goes last: it is what is looked up."""
        for name in ("signature", "signer"):
            self.tag(registered_name(environment, model), entry.number, name, getattr(entry, name))

    def tag(self, registered: str, number: int, name: str, value: str) -> None:
        """Set a tag of a version."""
        with reachable():
            self._client.set_model_version_tag(registered, str(number), name, value)

    def _log_after(self, environment: str, model: str, draft: Draft) -> Log:
        """The log down to where an entry made of `draft` would be: above its base."""
        try:
            return self.head(environment, model, down_to=draft.base + 1)
        except StoreUnreachable as error:
            raise StoreUnreachable(
                f"the MLflow store stopped answering while an entry of {registered_name(environment, model)} was being "
                f"written; `onward history {model}` will say whether it counts"
            ) from error

    def _while_free(self, environment: str, model: str, draft: Draft) -> Iterator[None]:
        yield
        for _ in range(_APPENDS):
            if self.head(environment, model).history.base != draft.base:
                return
            yield
        raise StoreUnreachable(
            f"the MLflow store refused {_APPENDS} times to number an entry of {registered_name(environment, model)}; "
            "nothing was changed. Try again"
        )

    def _try_append(self, registered: str, draft: Draft) -> bool:
        """Whether an entry may now be in the log: one whose answer was lost on the way may be, too."""
        from mlflow.exceptions import MlflowException

        try:
            with reachable(), as_default(self._client):
                self._client.create_model_version(
                    registered,
                    source=draft.source,
                    tags=to_tags(draft),
                    run_link=link(draft, registered),
                    description=markdown(draft),
                    model_id=_logged_model(draft.source),
                    await_creation_for=0,
                )
        except MlflowException as error:
            if "creation error" in str(error) and "Giving up" in str(error):
                return False
            raise
        except StoreUnreachable as error:
            environment, _, model = registered.partition(".")
            if any(entry.key == draft.key for entry in self._log_after(environment, model, draft).entries()):
                return True
            raise StoreUnreachable(
                f"{error}. The log of {registered} holds no such entry now; `onward history {model}` will say whether "
                "one came late"
            ) from error
        return True

    def place(self, environment: str, model: str, entries: Iterable[Entry]) -> None:
        """Append entries that another server had, under the numbers that they had there; their `source` is here.

        Numbers between them that belong to no entry are taken by versions that are none; `clear` removes those.

        Raises:
            LostRace: a number is taken.
        """
        registered = registered_name(environment, model)
        self._create(registered)
        log = self.log(environment, model)
        taken = max([0, *log.foreign, *(known.number for known in log.entries())])
        for entry in entries:
            while taken < entry.number:
                taken += 1
                if not self._take(registered, entry, taken):
                    raise LostRace(
                        f"{registered}: number {taken} is taken, so that entry {entry.number} cannot keep its own. "
                        "Either somebody deployed meanwhile, or deleted versions used the numbers up: see "
                        f"`onward history {model}`; if that is empty, delete the registered model {registered} and "
                        "import again"
                    )

    def _take(self, registered: str, entry: Entry, number: int) -> bool:
        """Create version `number`: the entry, if it is the entry's own. Another number is given back."""
        own = number == entry.number
        with reachable(), as_default(self._client):
            version = self._client.create_model_version(
                registered,
                source=entry.source,
                tags=to_tags(entry) if own else {},
                run_link=link(entry, registered) if own else None,
                description=markdown(entry) if own else "No entry: the log that is being imported has none here.",
                model_id=_logged_model(entry.source),
                await_creation_for=0,
            )
            if int(version.version) == number:
                return True
            self._client.delete_model_version(registered, version.version)
            return False

    def clear(self, environment: str, model: str, numbers: Iterable[int]) -> None:
        """Delete versions that are no entries."""
        with reachable():
            for number in sorted(set(numbers) & set(self.log(environment, model).foreign)):
                self._client.delete_model_version(registered_name(environment, model), str(number))

    def prepare(self, environment: str, models: Iterable[str]) -> list[str]:
        """Make the registered models of an environment's logs, and return the names of those that were not there."""
        return [name for model in models if self._create(name := registered_name(environment, model))]

    def prepare_webhook(self, environment: str, address: str) -> list[str]:
        """Make the server's webhook of an environment; see registry/store/webhooks.py."""
        return webhooks.ensure(self._client, environment, address)

    def _create(self, registered: str) -> bool:
        """Whether it was made just now."""
        from mlflow.exceptions import MlflowException

        if registered in self.versions.named(registered):
            return False
        with reachable():
            try:
                self._client.create_registered_model(
                    registered,
                    description="Deployments, kept by Onward: one version an entry, never deleted.",
                )
            except MlflowException as lost:
                if lost.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return False
            return True

    def _mark(self, registered: str, number: int) -> None:
        with reachable(), _somebody_else_may():
            self._client.set_model_version_tag(registered, str(number), LOST, "true")

    def delete_candidate(self, candidate: RegisteredVersion) -> None:
        """Delete a version and the logged model behind it. The version goes last: while it is there, an interrupted
        deletion is seen and done again."""
        from mlflow.exceptions import MlflowException

        relocate.require_here(self._client.tracking_uri)  # `mlflow gc` would delete files of another store
        with reachable():
            try:
                if candidate.logged_model:
                    self._client.delete_logged_model(candidate.logged_model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            self._client.delete_model_version(candidate.model, str(candidate.version))

    def set_stage(self, model: str, version: int, stage: str) -> None:
        """Put a version into one of MLflow's deprecated stages."""
        with reachable(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._client.transition_model_version_stage(model, str(version), stage)

    def heal(self, environment: str, model: str, log: Log | None = None) -> list[Drift]:
        """Make the views agree with the log (its newest part, unless given), and return what had to be written.

        Where the log raises an alarm nothing is written: that would complete what somebody did to the log.

        Others may append meanwhile, so it looks at the log again after every pass that wrote something: whoever was
        overtaken sees that, and writes what is right by then.
        """
        healed: list[Drift] = []
        registered = registered_name(environment, model)
        log = log or self.head(environment, model)
        for _ in range(0 if log.alarm else _PASSES):
            found = {registered: self.versions.alias(registered, LIVE), model: self.versions.alias(model, environment)}
            drifts = find_drift(environment, model, log, self.live_candidate(model, log), found)
            for drift in drifts:
                self._write(drift)
            healed += drifts
            if not drifts:
                break
            newer = self.head(environment, model)
            if newer.alarm or newer.history.base == log.history.base:
                break
            log = newer
        return healed

    def live_candidate(self, model: str, log: Log) -> int | None:
        """The version that is live, if it still exists. One of the same number with other bytes belongs to a model that
        was deleted and made anew, and is not meant."""
        live = log.history.live
        candidate = self.candidate(model, live.candidate_version) if live else None
        return candidate.version if live and candidate and candidate.sha256 == live.sha256 else None

    def _write(self, drift: Drift) -> None:
        if drift.alias == LOST:
            self._mark(drift.registered, int(drift.wanted or 0))
            return
        # Not by the client's own methods of these names: to tell that it is no prompt, they read every version.
        aliases = self._client._get_registry_client()  # type: ignore[no-untyped-call]
        with reachable(), _somebody_else_may():
            if drift.wanted is None:
                aliases.delete_registered_model_alias(drift.registered, drift.alias)
            else:
                aliases.set_registered_model_alias(drift.registered, drift.alias, str(drift.wanted))


@contextmanager
def _somebody_else_may() -> Iterator[None]:
    """Let pass that another process wrote the same row of a view first: what it should say is looked at again."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not re.search("IntegrityError|UniqueViolation|UNIQUE constraint|StaleDataError", str(error)):
            raise


def _logged_model(source: str) -> str | None:
    """The id of the logged model that a source is, where it is one."""
    return source.removeprefix("models:/") if source.startswith("models:/") else None
