"""The deployment log and the candidates, kept in MLflow; registry/deployments.py says what the log means.

Each environment of each model is one registered model, `production.cnn`, and its versions are the log: creating one is
the operation of MLflow that is atomic and hands out numbers that never come back. The aliases `live` (on
`production.cnn`) and `production` (on the candidates' `cnn`), and the tag `lost`, are views of the log. They are
written after an entry, and whoever writes next heals what an interrupted command left of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from registry.connection import connect, ensure_experiment, reachable
from registry.deployments import Draft, Entry, Line, fold
from registry.errors import LostRace, Refused, StoreUnreachable, UsageError
from registry.integrity import check_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

LIVE = "live"
LOST = "lost"
SCHEMA = 1

_PAGE = 1000
# MLflow gives up numbering a version after three collisions; then somebody else got in, or the next try does.
_APPENDS = 20
# One healing pass a change that others make meanwhile; more than a few in a row is a storm, and they heal after us.
_PASSES = 5


@dataclass(frozen=True)
class Candidate:
    """A version that the pipeline registered. `evidence` is its tags: what was measured, as registry/record.py says."""

    model: str
    version: int
    evidence: Mapping[str, str]

    @property
    def sha256(self) -> str:
        return self.evidence.get("sha256", "")

    @property
    def source(self) -> str:
        return f"models:/{self.model}/{self.version}"


@dataclass(frozen=True)
class Log:
    """An environment's log as it is stored: the line, which lost entries carry their mark, and which versions are no
    entries at all (somebody registered them by hand); those count for nothing."""

    line: Line
    marked: frozenset[int] = frozenset()
    foreign: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drift:
    """A view that disagrees with the log: an alias that should be at `wanted` (None: nowhere), or a mark missing."""

    registered: str
    alias: str
    wanted: int | None
    found: int | None

    def __str__(self) -> str:
        if self.alias == LOST:
            return f"entry {self.wanted} of {self.registered} lost a race and is not marked"
        where = "nowhere" if self.found is None else f"at {self.found}"
        right = "nowhere" if self.wanted is None else f"at {self.wanted}"
        return f"the alias {self.alias} of {self.registered} is {where} and belongs {right}"


class Store:
    """What Onward keeps in MLflow.

    Every method raises StoreUnreachable where the store does not answer.
    """

    def __init__(self, client: MlflowClient | None = None) -> None:
        self._client = client or connect()

    # Reading

    def log(self, environment: str, model: str) -> Log:
        """The log of one environment of one model; an empty one where nothing was ever deployed."""
        return parse_log(self._versions(f"name = '{registered_name(environment, model)}'"))

    def candidates(self, model: str) -> list[Candidate]:
        """The versions that the pipeline registered, newest first."""
        found = [_candidate(version) for version in self._versions(f"name = '{model}'")]
        return sorted(found, key=lambda candidate: -candidate.version)

    def candidate(self, model: str, version: int) -> Candidate | None:
        """One version, or None where there is none (any more)."""
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return _candidate(self._client.get_model_version(model, str(version)))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def aliases(self, registered: str) -> dict[str, int]:
        """Alias to version number of a registered model; empty where there is no such model."""
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                return _aliases(self._client.get_registered_model(registered))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise

    def everything(self) -> tuple[dict[str, list[ModelVersion]], dict[str, dict[str, int]]]:
        """All versions and all aliases, by registered model, in as few requests as there are pages."""
        aliases: dict[str, dict[str, int]] = {}
        versions: dict[str, list[ModelVersion]] = {}
        token: str | None = None
        with reachable():
            while True:
                page = self._client.search_registered_models(max_results=_PAGE, page_token=token)
                for registered in page:
                    aliases[registered.name] = _aliases(registered)
                    versions[registered.name] = []
                token = page.token
                if not token:
                    break
        for version in self._versions(None):
            versions.setdefault(version.name, []).append(version)
        return versions, aliases

    def _versions(self, wanted: str | None) -> Iterator[ModelVersion]:
        token: str | None = None
        while True:
            with reachable():
                page = self._client.search_model_versions(wanted, max_results=_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    # Writing

    def append(self, environment: str, model: str, draft: Draft) -> Log:
        """Append an entry, and return the log in which it counted.

        Raises:
            LostRace: another entry was appended first; this one, if it was written at all, is marked as lost.
            StoreUnreachable: the store did not answer; the message says whether the entry may have been written.
        """
        registered = registered_name(environment, model)
        self._create(registered)
        written = any(self._try_append(registered, draft) for _ in self._while_free(environment, model, draft))
        log = self._log_after(environment, model)
        if written and log.line.won(draft.key):
            return log
        for entry in log.line.lost:
            if entry.key == draft.key:
                self._mark(registered, entry.number)
        raise LostRace(
            f"{registered}: somebody else got there first, and nothing of this counts. "
            f"Live now: {f'entry {log.line.live.number}, {log.line.live}' if log.line.live else 'nothing'}. "
            f"Look at `onward history {model}`, then run the command again if you still want it"
        )

    def _log_after(self, environment: str, model: str) -> Log:
        try:
            return self.log(environment, model)
        except StoreUnreachable as error:
            raise StoreUnreachable(
                f"the MLflow store stopped answering while an entry of {registered_name(environment, model)} was being "
                f"written; `onward history {model}` will say whether it counts"
            ) from error

    def _while_free(self, environment: str, model: str, draft: Draft) -> Iterator[None]:
        yield
        for _ in range(_APPENDS):
            if self.log(environment, model).line.base != draft.base:
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
            with reachable():
                self._client.create_model_version(
                    registered,
                    source=draft.source,
                    tags=to_tags(draft),
                    description=str(draft),
                    model_id=draft.source.removeprefix("models:/"),
                    await_creation_for=0,
                )
        except MlflowException as error:
            if "creation error" in str(error) and "Giving up" in str(error):
                return False
            raise
        except StoreUnreachable:
            environment, _, model = registered.partition(".")
            if any(entry.key == draft.key for entry in self._log_after(environment, model).line.entries()):
                return True
            raise
        return True

    def _create(self, registered: str) -> None:
        from mlflow.exceptions import MlflowException

        with reachable():
            try:
                self._client.get_registered_model(registered)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                try:
                    self._client.create_registered_model(
                        registered,
                        description="Deployments, kept by Onward: one version an entry, never deleted.",
                    )
                except MlflowException as lost:
                    if lost.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise

    def _mark(self, registered: str, number: int) -> None:
        with reachable(), _somebody_else_may():
            self._client.set_model_version_tag(registered, str(number), LOST, "true")

    def heal(self, environment: str, model: str, log: Log | None = None) -> list[Drift]:
        """Make the views agree with the log (read anew unless given), and return what had to be written.

        Others may append meanwhile, so it looks again after every pass that wrote something.
        """
        healed: list[Drift] = []
        for _ in range(_PASSES):
            log = log or self.log(environment, model)
            live = log.line.live
            candidate = self.candidate(model, live.candidate_version) if live else None
            registered = registered_name(environment, model)
            drifts = find_drift(
                environment, model, log, candidate, {name: self.aliases(name) for name in (registered, model)}
            )
            for drift in drifts:
                self._write(drift)
            healed += drifts
            if not drifts:
                break
            log = None
        return healed

    def _write(self, drift: Drift) -> None:
        if drift.alias == LOST:
            self._mark(drift.registered, int(drift.wanted or 0))
            return
        with reachable(), _somebody_else_may():
            if drift.wanted is None:
                self._client.delete_registered_model_alias(drift.registered, drift.alias)
            else:
                self._client.set_registered_model_alias(drift.registered, drift.alias, str(drift.wanted))

    # Bytes

    def fetch(self, source: str, folder: Path) -> Path:
        """Download what `source` (a models:/ URI) points to into `folder`, and return the folder it is in.

        Raises:
            Refused: its files are gone from the store.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        gone = Refused(f"{source}: the store no longer has its files")
        with reachable():
            try:
                found = Path(download_artifacts(artifact_uri=source, dst_path=str(folder)))
            except FileNotFoundError:
                raise gone from None
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
                    raise gone from None
                raise
            except OSError as error:
                if "No such file" in str(error):
                    raise gone from None
                raise
        (found / "registered_model_meta").unlink(missing_ok=True)  # MLflow's note on where this download came from
        return found

    def own_copy(self, environment: str, model: str, sha256: str) -> str | None:
        """The source of an environment's own copy of these bytes, or None where it has none yet."""
        from mlflow.entities import LoggedModelStatus

        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable():
            found = self._client.search_logged_models(
                [experiment], filter_string=f"name = '{model}' and tags.sha256 = '{sha256}'"
            )
        whole = [logged for logged in found if logged.status == LoggedModelStatus.READY]
        return f"models:/{whole[0].model_id}" if whole else None

    def keep(self, environment: str, model: str, sha256: str, folder: Path, scratch: Path) -> str:
        """Make `folder` the environment's own copy, and return its source. Read back: what a consumer will load has
        to be what was uploaded."""
        from mlflow.entities import LoggedModelStatus

        experiment = ensure_experiment(self._client, experiment_name(environment))
        with reachable():
            logged = self._client.create_logged_model(
                experiment, name=model, tags={"sha256": sha256, "onward.environment": environment}, model_type="onnx"
            )
            source = f"models:/{logged.model_id}"
            try:
                self._client.log_model_artifacts(logged.model_id, str(folder))
                check_folder(self.fetch(source, scratch), sha256)
            except BaseException:
                self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
                raise
            self._client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        return source


@contextmanager
def _somebody_else_may() -> Iterator[None]:
    """Let pass that another process wrote the same row of a view first: what it should say is looked at again."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if not re.search("IntegrityError|UniqueViolation|UNIQUE constraint|StaleDataError", str(error)):
            raise


def registered_name(environment: str, model: str) -> str:
    """The registered model that holds the log. Neither name holds a dot (policy.valid_name), so it reads back."""
    return f"{environment}.{model}"


def experiment_name(environment: str) -> str:
    """The experiment that holds an environment's own copies."""
    return f"environments/{environment}"


def to_tags(draft: Draft) -> dict[str, str]:
    """An entry as the tags of a model version."""
    tags = {
        "schema": str(SCHEMA),
        "kind": draft.kind,
        "key": draft.key,
        "base": str(draft.base),
        "sha256": draft.sha256,
        "candidate": str(draft.candidate_version),
        "actor": draft.actor,
        "reason": draft.reason,
        "at": draft.at,
        "evidence": json.dumps(draft.evidence, sort_keys=True),
    }
    if draft.kind == "rollback":
        tags["restores"] = str(draft.restores)
    if draft.gates:
        tags["gates"] = json.dumps([gate.model_dump() for gate in draft.gates])
    if draft.forced:
        tags["forced"] = "true"
    return tags


def from_version(version: ModelVersion) -> Entry | None:
    """The entry that a model version holds, or None where it holds none.

    Raises:
        UsageError: a newer Onward wrote it, so that this one might misread it.
    """
    tags: dict[str, str] = version.tags
    schema = tags.get("schema", "")
    if schema.isdigit() and int(schema) > SCHEMA:
        raise UsageError(f"{version.name}: entry {version.version} was written by a newer Onward: upgrade this one")
    try:
        return Entry.model_validate(
            {
                "number": int(version.version),
                "candidate_version": tags["candidate"],
                "source": version.source,
                "restores": tags.get("restores", 0),
                "forced": tags.get("forced", "false"),
                "gates": json.loads(tags.get("gates", "[]")),
                "evidence": json.loads(tags.get("evidence", "{}")),
                **{name: tags[name] for name in ("kind", "key", "base", "sha256", "actor", "reason", "at")},
            }
        )
    except (KeyError, ValueError, ValidationError):
        return None


def parse_log(versions: Iterable[ModelVersion]) -> Log:
    """A log from the versions of its registered model."""
    entries, marked, foreign = [], [], []
    for version in versions:
        entry = from_version(version)
        if entry is None:
            foreign.append(int(version.version))
            continue
        entries.append(entry)
        if LOST in version.tags:
            marked.append(entry.number)
    return Log(fold(entries), frozenset(marked), tuple(sorted(foreign)))


def find_drift(
    environment: str,
    model: str,
    log: Log,
    candidate: Candidate | None,
    aliases: Mapping[str, Mapping[str, int]],
) -> list[Drift]:
    """The views that disagree with the log.

    `candidate` is the version that is live, if it still exists; one of the same number with other bytes belongs to a
    model that was deleted and made anew, and is not meant.
    """
    live = log.line.live
    registered = registered_name(environment, model)
    same = live is not None and candidate is not None and candidate.sha256 == live.sha256
    wanted = {
        (registered, LIVE): live.number if live else None,
        (model, environment): candidate.version if candidate is not None and same else None,
    }
    drifts = [
        Drift(name, alias, number, aliases.get(name, {}).get(alias))
        for (name, alias), number in wanted.items()
        if aliases.get(name, {}).get(alias) != number
    ]
    unmarked = [entry.number for entry in log.line.lost if entry.number not in log.marked]
    return drifts + [Drift(registered, LOST, number, None) for number in unmarked]


def _candidate(version: ModelVersion) -> Candidate:
    return Candidate(version.name, int(version.version), dict(version.tags))


def _aliases(registered: Any) -> dict[str, int]:
    return {alias: int(version) for alias, version in registered.aliases.items()}
