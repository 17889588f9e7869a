"""Webhooks that the MLflow server sends of its own accord (MLflow 3.3 and newer), for `notify: {server_webhook: ...}`.

The server tells of every version that is made, an entry being one, with all its tags, and of every alias that is set:
`live` is where an entry counts. It tries again by itself, and tells also of an entry whose author was killed. It does
not choose by model: whoever receives looks at the name, `production.cnn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onward.registry.errors import UsageError
from onward.registry.store.connection import http_status, reachable, tracking_uri
from onward.registry.store.reach import is_server
from onward.registry.uri import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient


def ensure(client: MlflowClient, environment: str, address: str) -> list[str]:
    """Make the webhook of an environment, or set its address right, and return its name if something was written.

    Raises:
        UsageError: the store has no webhooks, or takes no such address.
        Refused: only an administrator may.
        StoreUnreachable: the store did not answer.
    """
    name = f"onward.{environment}"
    where = f"params.yaml: environments.{environment}.notify.server_webhook"
    if not is_server(tracking_uri()):
        raise UsageError(f"{where}: the store is a database without a server, which sends nothing: use `webhook`")
    from mlflow.exceptions import MlflowException

    with reachable():
        try:
            token: str | None = None
            while True:
                page = client.list_webhooks(page_token=token)
                for webhook in page:
                    if webhook.name == name:
                        if webhook.url == address:
                            return []
                        client.update_webhook(webhook.webhook_id, url=address)
                        return [f"webhook {name}"]
                if not (token := page.token):
                    break
            client.create_webhook(
                name,
                address,
                ["model_version.created", "model_version_alias.created"],
                description="Entries of Onward's deployment log.",
            )
        except (MlflowException, AttributeError) as error:
            if isinstance(error, AttributeError) or http_status(error) == 404:
                raise UsageError(
                    f"{where}: {without_credentials(tracking_uri())} has no webhooks (MLflow 3.3 and newer have): "
                    "use `webhook`"
                ) from None
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                # Not in the server's words: they repeat the address, which may be a secret.
                raise UsageError(
                    f"{where}: the server takes no such address: it wants https and a public host, unless it was "
                    "started with other MLFLOW_WEBHOOK_ settings"
                ) from None
            raise
    return [f"webhook {name}"]
