"""Read and write the deployment log and the candidates in MLflow.

registry/log/entries.py defines the log's meaning, and registry/store/schema.py its representation in MLflow.

An entry is appended by creating a version of a registered model. MLflow does this atomically, and never assigns a
version number twice. Aliases and marks are written after the entry. If a command is interrupted in between, the next
command that writes corrects them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from onward.registry.errors import LostRace, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.log.entries import Draft, Entry
from onward.registry.names import is_name
from onward.registry.store import direct_rows, log_memory, monitor_runs, newest_run, relocate, webhooks
from onward.registry.store.artifacts import Files
from onward.registry.store.connection import as_default, checked, connect, excerpt, reachable
from onward.registry.store.entry_pages import entry_page, history_page
from onward.registry.store.logged_models import describe_copy
from onward.registry.store.model_versions import Versions
from onward.registry.store.monitor_tags import Recorded
from onward.registry.store.rows import Rows
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
from onward.registry.trust.entry_signatures import link

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow gives up after three collisions of version numbers. Then Onward tries again, unless another entry now counts.
_APPENDS = 20
# Each change by another process needs one more pass of `heal`. The last process to write corrects the views, so a
# process need not continue through many changes.
_PASSES = 5
_FILLER = "Not an entry: the imported log has no entry of this number."


class Store:
    """The MLflow store in use: the logs, the candidates and their files.

    The store is opened at the first request. Every method raises StoreUnreachable if the store does not answer.

    Args:
        client: a client of the store; None to connect to the store in use.
        create: whether to create an embedded store that does not exist. Operations that only read pass False.
        direct: whether to read rows without MLflow where that is possible (registry/store/direct_rows.py).
        address: the store's URI, including credentials; "" for the store in use.
    """

    def __init__(
        self, client: MlflowClient | None = None, *, create: bool = True, direct: bool = False, address: str = ""
    ) -> None:
        self._given, self._create_store, self._direct, self._address = client, create, direct, address

    @cached_property
    def _client(self) -> MlflowClient:
        if self._given is not None:
            return self._given
        return connect(self._address, self._create_store) if self._address else connect(create=self._create_store)

    @cached_property
    def uri(self) -> str:
        """The store's URI, including credentials."""
        if self._direct and self._given is None:
            return checked(self._address or None, self._create_store)
        return str(self._client.tracking_uri)

    @cached_property
    def rows(self) -> Rows:
        """The registered versions, for reading."""
        found = direct_rows.open_rows(self.uri) if self._direct and self._given is None else None
        return found or self.versions

    @cached_property
    def versions(self) -> Versions:
        """The registered models and versions, as MLflow stores them."""
        return Versions(self._client)

    @cached_property
    def files(self) -> Files:
        """The files of versions and of environments."""
        return Files(self._client)

    # Reading

    def log(self, environment: str, model: str) -> Log:
        """The whole log of one environment of one model; an empty log if nothing was ever deployed."""
        log = self.parse(environment, model, self.rows.newest_first(registered_name(environment, model)))
        return self.remembered(environment, model, log)

    def head(self, environment: str, model: str, down_to: int | None = None) -> Log:
        """The newest part of a log, just long enough to say what is live, so the cost does not grow with the log.

        Args:
            environment: the environment.
            model: the model's name.
            down_to: the number of an entry that must be included.
        """
        versions: list[Version] = []
        for page, floor in self.rows.pages(registered_name(environment, model)):
            versions += page
            log = self.parse(environment, model, versions, floor)
            if log.settled and (down_to is None or floor < down_to):
                break
        return self.remembered(environment, model, log)

    def remembered(self, environment: str, model: str, log: Log) -> Log:
        """The log, with an additional alarm if the environment has signers and the remembered live entry is gone.

        Args:
            environment: the environment.
            model: the model's name.
            log: the log, read far enough to say what is live.
        """
        known = policy.read().get(environment)
        gone = log_memory.gone(self.uri, registered_name(environment, model), log) if known and known.signers else ""
        return replace(log, alarm=(*log.alarm, gone)) if gone else log

    def parse(self, environment: str, model: str, versions: Iterable[Version], floor: int = 0) -> Log:
        """Build a log from versions that were read, and check it against the environment's signers.

        Args:
            environment: the environment.
            model: the model's name.
            versions: the versions, in any order.
            floor: the highest number that was not read; 0 if all versions were read.
        """
        known = policy.read().get(environment)
        return parse_log(registered_name(environment, model), versions, known.signers if known else {}, floor)

    def entry(self, environment: str, model: str, number: int) -> Entry:
        """One deployment by its number, even if it lost a race.

        Args:
            environment: the environment.
            model: the model's name.
            number: the entry's number.

        Raises:
            UsageError: there is no such entry, or the environment has signers and none of them signed it.
        """
        registered = registered_name(environment, model)
        version = self.rows.get(registered, number)
        log = self.parse(environment, model, [version] if version else [], floor=number - 1)
        if log.unproven or log.open:  # its signer may have been removed; then later entries prove it
            log = self.head(environment, model, down_to=number)
        if any(entry.number == number for entry in log.unproven):
            raise UsageError(f"entry {number} does not count: none of the signers of {environment} signed it")
        found = next((entry for entry in log.history.entries() if entry.number == number), None)
        if found is None:
            raise UsageError(f"there is no entry {number} (any more): `onward history {model}` lists the entries")
        return found

    def approvals(self, environment: str, model: str, sha256: str) -> tuple[Entry, ...]:
        """The approvals of a model for an environment. If it has signers, only signed approvals count.

        Args:
            environment: the environment.
            model: the model's name.
            sha256: the digest of the approved model.
        """
        found = self.versions.tagged(registered_name(environment, model), kind="approve", sha256=sha256)
        return self.parse(environment, model, found).approvals

    def candidates(self, model: str) -> Iterator[RegisteredVersion]:
        """The versions that the pipeline registered, newest first, read page by page as they are needed."""
        return map(to_registered_version, self.rows.newest_first(model))

    def candidate(self, model: str, version: int) -> RegisteredVersion | None:
        """One version that the pipeline registered; None if it does not exist (any more)."""
        found = self.rows.get(model, version)
        return to_registered_version(found) if found is not None else None

    def run(self, run_id: str) -> tuple[dict[str, str], dict[str, float]] | None:
        """The params and the metrics of a run; None if it does not exist (any more)."""
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
        """The metrics of a run; empty if it does not exist (any more)."""
        _, metrics = self.run(run_id) or ({}, {})
        return metrics

    def reports(self, run_id: str, folder: Path) -> Path | None:
        """Download the reports that the pipeline recorded with a run.

        Args:
            run_id: The run.
            folder: Where the files are written.

        Returns:
            The folder with them; None if the run does not exist (any more), or has no reports.
        """
        if self.run(run_id) is None:
            return None
        with reachable():
            if not any(item.path == "reports" for item in self._client.list_artifacts(run_id)):
                return None
            return Path(self._client.download_artifacts(run_id, "reports", str(folder)))

    def failures(self) -> dict[str, str]:
        """The models whose newest pipeline run failed, and the reason for each."""
        return newest_run.failures(self._client)

    def alarms(self) -> dict[tuple[str, str], tuple[Recorded, ...]]:
        """The monitor's alarms by environment and model."""
        return monitor_runs.alarms(self._client)

    def record_monitoring(
        self,
        environment: str,
        model: str,
        points: Sequence[tuple[str, float, float]],
        recorded: Recorded,
        monitor: str,
        page: str = "",
    ) -> str:
        """Write what the monitor found, and return the id of the run; see registry/store/monitor_runs.py."""
        return monitor_runs.record(self._client, environment, model, points, recorded, monitor, page)

    def environments(self, model: str) -> list[str]:
        """The environments with a log of `model`, including those that params.yaml no longer names."""
        names = [name.partition(".") for name in self.versions.named(f"%.{model}")]
        return sorted(environment for environment, _, name in names if name == model and is_name(environment))

    # Writing

    def append(self, environment: str, model: str, draft: Draft) -> Log:
        """Append an entry to a log.

        Args:
            environment: the environment.
            model: the model's name.
            draft: the entry.

        Returns:
            the log, in which the entry counts.

        Raises:
            LostRace: another entry was appended first. If this one was written at all, it is marked as lost.
            StoreUnreachable: the store did not answer. The message says whether the entry may have been written.
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
        cause = "another command was faster"
        if log.alarm:
            cause = f"a row that no signer signed was added meanwhile ({'; '.join(log.alarm)})"
        live = f"entry {log.history.live.number}, {log.history.live}" if log.history.live else "nothing"
        raise LostRace(
            f"{registered}: {cause}, so this command had no effect. Live now: {live}. "
            f"Look at `onward history {model}`, then run the command again if you still want it"
        )

    def approve(self, environment: str, model: str, draft: Draft) -> Entry:
        """Append an approval. It does not change what is live, so it cannot lose a race.

        Args:
            environment: the environment.
            model: the model's name.
            draft: the approval.

        Returns:
            the approval, as it is in the log.

        Raises:
            StoreUnreachable: the store did not answer. The message says whether the approval may have been written.
        """
        registered = registered_name(environment, model)
        self._create(registered)
        if any(self._try_append(registered, draft) for _ in range(_APPENDS)):
            for approval in self.approvals(environment, model, draft.sha256):
                if approval.key == draft.key:
                    return approval
        raise StoreUnreachable(f"the MLflow store did not store the approval in {registered}. Try again")

    def sign(self, environment: str, model: str, entry: Entry) -> None:
        """Store the signature of an entry that is already in the log.

        The signer's name is written last: without a name, the signature is ignored.

        Args:
            environment: the environment.
            model: the model's name.
            entry: the signed entry.
        """
        for name in ("signature", "signer"):
            self.tag(registered_name(environment, model), entry.number, name, getattr(entry, name))

    def tag(self, registered: str, number: int, name: str, value: str) -> None:
        """Set a tag of a version of a registered model."""
        with reachable():
            self._client.set_model_version_tag(registered, str(number), name, value)

    def _log_after(self, environment: str, model: str, draft: Draft) -> Log:
        """The log, down to the entry after the draft's base."""
        try:
            return self.head(environment, model, down_to=draft.base + 1)
        except StoreUnreachable as error:
            raise StoreUnreachable(
                f"the MLflow store stopped answering while an entry of {registered_name(environment, model)} was being "
                f"written: `onward history {model}` shows whether it counts"
            ) from error

    def _while_free(self, environment: str, model: str, draft: Draft) -> Iterator[None]:
        """Yield once for each attempt to append, until another entry counts."""
        yield
        for _ in range(_APPENDS):
            if self.head(environment, model).history.base != draft.base:
                return
            yield
        raise StoreUnreachable(
            f"the MLflow store failed {_APPENDS} times to assign a number to an entry of "
            f"{registered_name(environment, model)}: nothing was changed. Try again"
        )

    def _try_append(self, registered: str, draft: Draft) -> bool:
        """Try to append an entry, and return whether it may be in the log now."""
        from mlflow.exceptions import MlflowException

        try:
            with reachable(), as_default(self._client):
                self._client.create_model_version(
                    registered,
                    source=draft.source,
                    tags=to_tags(draft),
                    run_link=link(draft, registered),
                    description=entry_page(draft, registered),
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
                f"{error}. The log of {registered} does not contain the entry now: `onward history {model}` shows "
                "whether it arrived later"
            ) from error
        return True

    def place(self, environment: str, model: str, entries: Iterable[Entry]) -> None:
        """Append entries of another store under the same numbers.

        Unused numbers between them are filled with versions that are not entries. `clear` deletes those again.

        Args:
            environment: the environment.
            model: the model's name.
            entries: the entries, in order. Their `source` must be in this store.

        Raises:
            LostRace: a number is already used.
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
                        f"{registered}: number {taken} is already used, so entry {entry.number} cannot keep its "
                        "number. Either another command deployed meanwhile, or deleted versions used the number. Look "
                        f"at `onward history {model}`. If it is empty, delete the registered model {registered} and "
                        "import again"
                    )

    def _take(self, registered: str, entry: Entry, number: int) -> bool:
        """Create version `number`, and return False if MLflow assigned another number.

        The version stores the entry only if `number` is the entry's own. A version with another number is deleted.
        """
        own = number == entry.number
        with reachable(), as_default(self._client):
            version = self._client.create_model_version(
                registered,
                source=entry.source,
                tags=to_tags(entry) if own else {},
                run_link=link(entry, registered) if own else None,
                description=entry_page(entry, registered) if own else _FILLER,
                model_id=_logged_model(entry.source),
                await_creation_for=0,
            )
            if int(version.version) == number:
                return True
            self._client.delete_model_version(registered, version.version)
            return False

    def clear(self, environment: str, model: str, numbers: Iterable[int]) -> None:
        """Delete versions that are not entries.

        Args:
            environment: the environment.
            model: the model's name.
            numbers: the versions to delete. Numbers of entries are ignored.
        """
        with reachable():
            for number in sorted(set(numbers) & set(self.log(environment, model).foreign)):
                self._client.delete_model_version(registered_name(environment, model), str(number))

    def prepare(self, environment: str, models: Iterable[str]) -> list[str]:
        """Create the registered models of an environment's logs.

        Args:
            environment: the environment.
            models: the names of the models.

        Returns:
            the names of the registered models that were created now.
        """
        return [name for model in models if self._create(name := registered_name(environment, model))]

    def prepare_webhook(self, environment: str, address: str) -> list[str]:
        """Create the server's webhook of an environment; see registry/store/webhooks.py."""
        return webhooks.ensure(self._client, environment, address)

    def _create(self, registered: str) -> bool:
        """Create a registered model if it does not exist, and return whether it was created now."""
        from mlflow.exceptions import MlflowException

        if registered in self.versions.named(registered):
            return False
        with reachable():
            try:
                self._client.create_registered_model(
                    registered,
                    description="Onward's deployment log: each version is an entry. Do not delete versions.",
                )
            except MlflowException as lost:
                if lost.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return False
            return True

    def describe(self, environment: str, model: str, log: Log) -> None:
        """Write what MLflow's pages show about a log: its history, and the live copy's metrics and links.

        Nothing depends on it. A command that was interrupted before leaves it to the next one.

        Args:
            environment: the environment.
            model: the model's name.
            log: the log.

        Raises:
            StoreUnreachable: the store did not answer, or answered with an error.
        """
        from mlflow.exceptions import MlflowException

        registered, live = registered_name(environment, model), log.history.live
        page = history_page(model, registered, log.history.counted, live)
        try:
            with reachable():
                found = self._client.search_registered_models(f"name = '{registered}'", max_results=1)
                if found and found[0].description != page:
                    self._client.update_registered_model(registered, page)
                if live is not None and (logged := _logged_model(live.source)):
                    describe_copy(self._client, logged, environment, model, live)
        except MlflowException as error:
            raise StoreUnreachable(f"the MLflow store answered with an error: {excerpt(str(error))}") from error

    def _mark(self, registered: str, number: int) -> None:
        """Mark an entry as lost."""
        with reachable(), _tolerate_concurrent_write():
            self._client.set_model_version_tag(registered, str(number), LOST, "true")

    def delete_candidate(self, candidate: RegisteredVersion) -> None:
        """Delete a version and the logged model that contains its files.

        The version is deleted last, so that an interrupted deletion is found and completed by the next one.

        Args:
            candidate: the version.

        Raises:
            UsageError: the embedded store was moved or copied (registry/store/relocate.py).
        """
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
        """Move a version into one of MLflow's deprecated stages."""
        with reachable(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._client.transition_model_version_stage(model, str(version), stage)

    def heal(self, environment: str, model: str, log: Log | None = None) -> list[Drift]:
        """Correct the aliases and the marks that disagree with the log.

        If the log raises an alarm, nothing is written, because the log may have been tampered with.

        Other processes may append meanwhile. So after each pass that wrote something, the log is read again, and the
        aliases are corrected again if it has changed.

        Args:
            environment: the environment.
            model: the model's name.
            log: the log; None to read its newest part.

        Returns:
            the views that were corrected.
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
        """The number of the live version; None if nothing is live or the version was deleted.

        A version with the same number but other files does not count: its model was deleted and created again.

        Args:
            model: the model's name.
            log: the environment's log.
        """
        live = log.history.live
        candidate = self.candidate(model, live.candidate_version) if live else None
        return candidate.version if live and candidate and candidate.sha256 == live.sha256 else None

    def _write(self, drift: Drift) -> None:
        if drift.alias == LOST:
            self._mark(drift.registered, int(drift.wanted or 0))
            return
        # The client's own methods of these names are slow: they read every version, to exclude prompts.
        aliases = self._client._get_registry_client()  # type: ignore[no-untyped-call]
        with reachable(), _tolerate_concurrent_write():
            if drift.wanted is None:
                aliases.delete_registered_model_alias(drift.registered, drift.alias)
            else:
                aliases.set_registered_model_alias(drift.registered, drift.alias, str(drift.wanted))


@contextmanager
def _tolerate_concurrent_write() -> Iterator[None]:
    """Ignore the error that another process wrote the same alias or tag first: `heal` checks the views again."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not re.search("IntegrityError|UniqueViolation|UNIQUE constraint|StaleDataError", str(error)):
            raise


def _logged_model(source: str) -> str | None:
    """The id of the logged model that a source names; None if it names none."""
    return source.removeprefix("models:/") if source.startswith("models:/") else None
