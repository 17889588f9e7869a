"""Set up a webhook that the MLflow server itself sends (MLflow 3.3 and newer), for `notify: {server_webhook: ...}`.

The server reports every new version with its tags, and log entries are versions. It also reports every alias that is
set. The alias `live` shows that an entry counts. The server retries by itself, and reports an entry even if the command
that wrote it was killed. It cannot filter by model, so the receiver has to look at the name (`production.cnn`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onward.registry.errors import UsageError
from onward.registry.store.connection import all_items, http_status, reachable, tracking_uri
from onward.registry.store.reach import is_server
from onward.registry.uri import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient


def ensure(client: MlflowClient, environment: str, address: str) -> list[str]:
    """Create the webhook of an environment, or correct its address.

    Args:
        client: a client of the store.
        environment: the environment.
        address: the URL that the server sends to.

    Returns:
        the name of the webhook if it was created or changed now, else an empty list.

    Raises:
        UsageError: the store does not support webhooks, or rejects the address.
        Refused: the user is not an administrator of the server.
        StoreUnreachable: the store did not answer.
    """
    name = f"onward.{environment}"
    where = f"params.yaml: environments.{environment}.notify.server_webhook"
    if not is_server(tracking_uri()):
        raise UsageError(
            f"{where}: the store is a database without a server, so it cannot send webhooks: use `webhook`"
        )
    from mlflow.exceptions import MlflowException

    with reachable():
        try:
            for webhook in all_items(lambda token: client.list_webhooks(page_token=token)):
                if webhook.name == name:
                    if webhook.url == address:
                        return []
                    client.update_webhook(webhook.webhook_id, url=address)
                    return [f"webhook {name}"]
            client.create_webhook(
                name,
                address,
                ["model_version.created", "model_version_alias.created"],
                description="Entries of Onward's deployment log.",
            )
        except (MlflowException, AttributeError) as error:
            if isinstance(error, AttributeError) or http_status(error) == 404:
                raise UsageError(
                    f"{where}: {without_credentials(tracking_uri())} does not support webhooks, which need MLflow 3.3 "
                    "or newer: upgrade it, or use `webhook`"
                ) from None
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                # The server's own message is left out: it repeats the address, which may contain a secret.
                raise UsageError(
                    f"{where}: the server rejects the address. It requires https and a public host, unless its "
                    "MLFLOW_WEBHOOK_ settings allow others"
                ) from None
            raise
    return [f"webhook {name}"]
