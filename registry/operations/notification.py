"""Run an environment's hook after an entry was appended: a command or a webhook that params.yaml names.

The entry counts even if the hook fails. A failed hook is retried, and then reported as a warning. The warning never
contains the webhook's address or its answer, because they may contain a secret. A webhook of the MLflow server itself
is set up once, by `onward environments create` (registry/store/webhooks.py), and sent by the server.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.registry.uri import host

if TYPE_CHECKING:
    from onward.registry.gates.policy import Notify
    from onward.registry.log.entries import Entry

# The pauses before each retry, and the timeout of each try. They are short because the user waits for the command.
PAUSES_S = (1.0, 3.0)
TIMEOUT_S = 10.0


class _Failed(Exception):
    """One try failed. `again` says whether a retry may succeed."""

    def __init__(self, reason: str, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


def event(model: str, environment: str, entry: Entry) -> dict[str, Any]:
    """The JSON object that a hook receives.

    Args:
        model: the model's name.
        environment: the environment.
        entry: the appended entry.
    """
    return {"model": model, "environment": environment, **entry.model_dump(mode="json"), "sentence": str(entry)}


def announce(notify: Notify, model: str, environment: str, entry: Entry) -> str:
    """Run a hook, with two retries.

    Args:
        notify: the environment's hook.
        model: the model's name.
        environment: the environment.
        entry: the appended entry.

    Returns:
        a message if all tries failed, else "".
    """
    if notify.server_webhook is not None:
        return ""
    body = json.dumps(event(model, environment, entry)).encode()
    for pause in (*PAUSES_S, None):
        try:
            if notify.command is not None:
                _run(notify.command, body)
            else:
                _post(str(notify.webhook), body)
            return ""
        except _Failed as failed:
            if pause is None or not failed.again:
                return f"the entry counts, but the hook of {environment} failed: {failed}"
            time.sleep(pause)
    return ""


def resolved(address: str) -> str:
    """Replace `$NAME` with the address in the environment variable NAME.

    Args:
        address: an address, or `$NAME`.

    Raises:
        UsageError: the variable does not contain an http or https address.
    """
    if not address.startswith("$"):
        return address
    found = os.environ.get(address[1:], "")
    if not found.startswith(("https://", "http://")):
        raise UsageError(f"the environment variable {address[1:]} must contain an http:// or https:// address")
    return found


def _run(command: list[str], body: bytes) -> None:
    try:
        home = checkout.root()
    except UsageError:
        home = None
    try:
        # The hook's output goes to stderr, because stdout is for the output of `onward`.
        code = subprocess.run(command, input=body, stdout=2, timeout=TIMEOUT_S, cwd=home, check=False).returncode
    except subprocess.TimeoutExpired:
        raise _Failed(f"{command[0]} did not finish within {TIMEOUT_S:g} s") from None
    except OSError as error:
        raise _Failed(f"{command[0]} cannot be run: {error.strerror}", again=False) from None
    if code:
        raise _Failed(f"{command[0]} ended with exit code {code}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirects: urllib would turn the POST into a GET to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Reject the redirect, so the server's 3xx answer is an error."""


def _post(address: str, body: bytes) -> None:
    try:
        address = resolved(address)
    except UsageError as error:
        raise _Failed(str(error), again=False) from None
    opener = urllib.request.build_opener(_NoRedirect)
    where = f"the webhook at {host(address)}" if host(address) else "the webhook"
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        opener.open(request, timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        again = error.code >= 500 or error.code in (408, 429)
        raise _Failed(f"{where} answered {error.code}", again) from None
    except (OSError, http.client.HTTPException) as error:
        # Report only the error's type, because its message may contain the address.
        reason = getattr(error, "reason", error)
        raise _Failed(f"{where} could not be reached ({type(reason).__name__})") from None
    except ValueError:
        raise _Failed("the webhook's address is not a URL", again=False) from None
