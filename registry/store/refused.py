"""Records in the store that a server refused a live version, so that `onward status` shows it on every machine.

The record is a tag of the log's registered model, one per host. It names the entry, so it has no meaning any more as
soon as another entry is live. A server removes its record when it has loaded the live version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError

from onward.registry.evidence.records import Record
from onward.registry.names import tag_of
from onward.registry.store.connection import reachable
from onward.registry.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "onward.refused."
_LONGEST = 600


class Refusal(Record):
    """A live version that a server does not serve.

    Attributes:
        host: the server's host.
        entry: the number of the entry; 0 if the server could not read it.
        version: the version; 0 if the server could not read it.
        at: when, in ISO 8601.
        text: why.
    """

    host: str
    entry: int
    version: int
    at: str
    text: str

    def __str__(self) -> str:
        what = f"version {self.version}, entry {self.entry}," if self.entry else "what is live"
        return f"the server on {self.host} does not serve {what} since {self.at[:16].replace('T', ' ')}: {self.text}"


def read(tags: Mapping[str, str], live: int) -> tuple[Refusal, ...]:
    """The refusals of the live version.

    Args:
        tags: the tags of the log's registered model.
        live: the number of the live entry; 0 if nothing is live.
    """
    found = []
    for name in sorted(tags):
        if name.startswith(PREFIX):
            try:
                refusal = Refusal.model_validate_json(tags[name])
            except ValidationError:  # a newer Onward wrote it
                continue
            if refusal.entry in (0, live):
                found.append(refusal)
    return tuple(found)


def write(client: MlflowClient, registered: str, refusal: Refusal) -> None:
    """Record a refusal, and remove records of earlier entries, whose servers may not exist any more.

    Args:
        client: a client of the store.
        registered: the name of the log's registered model.
        refusal: the refusal.

    Raises:
        OnwardError: the store does not answer, or does not allow it.
        MlflowException: the store has no such registered model.
    """
    short = refusal.model_copy(update={"text": one_line(refusal.text)[:_LONGEST]})
    with reachable():
        tags = _tags(client, registered)
        for name in tags:
            if name.startswith(PREFIX) and not read({name: tags[name]}, refusal.entry):
                client.delete_registered_model_tag(registered, name)
        client.set_registered_model_tag(registered, tag_of(PREFIX, refusal.host), short.model_dump_json())


def clear(client: MlflowClient, registered: str, host: str) -> None:
    """Remove the record of a host, if there is one.

    Args:
        client: a client of the store.
        registered: the name of the log's registered model.
        host: the server's host.

    Raises:
        OnwardError: the store does not answer, or does not allow it.
        MlflowException: the store has no such registered model.
    """
    with reachable():
        if (tag := tag_of(PREFIX, host)) in _tags(client, registered):
            client.delete_registered_model_tag(registered, tag)


def _tags(client: MlflowClient, registered: str) -> dict[str, str]:
    found = client.search_registered_models(f"name = '{registered}'", max_results=1)
    return dict(found[0].tags) if found else {}
