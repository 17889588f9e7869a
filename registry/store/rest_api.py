"""Reads from an MLflow server with Python's own HTTP client, because importing MLflow or requests takes long.

Users, tokens, certificates, time-outs and retries come from the variables that MLflow's own client reads.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

_API = "/api/2.0/mlflow/"
_RETRIED = (408, 429, 500, 502, 503, 504)
_GONE = "RESOURCE_DOES_NOT_EXIST"


class Api:
    """The REST API of a server.

    Args:
        uri: the server's address, which may contain a user and a password.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri.rstrip("/"))
        place = parts.netloc.rpartition("@")[2]
        self._address = f"{parts.scheme}://{place}{parts.path}"
        self._authorization = _authorization(parts.username, parts.password)

    def get(self, method: str, **parameters: str) -> dict[str, Any] | None:
        """Send a GET request.

        Args:
            method: such as "model-versions/get".
            **parameters: its parameters.

        Returns:
            the answer; None if it says that there is no such thing.

        Raises:
            ConnectionError: the server does not answer, or answers with an error. The message has the form of MLflow's
                client, which connection.reachable translates.
            ValueError: the answer is not from an MLflow server.
        """
        path = f"{_API}{method}"
        status, content = self._retried(f"{self._address}{path}?{urlencode(parameters)}")
        text = content.decode(errors="replace")
        try:
            document = json.loads(content)
        except ValueError:
            document = None
        if status == 200:
            if not isinstance(document, dict):
                raise ValueError(f"Failed to parse the answer to {path}: {text[:200]}")
            return document
        if isinstance(document, dict) and document.get("error_code") == _GONE:
            return None
        raise ConnectionError(
            f"API request to endpoint {path} failed with error code {status} != 200. Response body: {text[:500]!r}"
        )

    def _retried(self, url: str) -> tuple[int, bytes]:
        """Status and body of the answer, after retries."""
        tries = int(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"))
        factor = float(os.environ.get("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"))
        for number in range(tries + 1):
            last = number == tries
            try:
                status, content = self._once(url)
                if last or status not in _RETRIED:
                    return status, content
            except (OSError, HTTPException) as error:
                if last:
                    reason = getattr(error, "reason", error)
                    raise ConnectionError(f"{type(reason).__name__}: {reason}") from error
            time.sleep(factor * 2**number)
        raise AssertionError("the last try returns or raises")

    def _once(self, url: str) -> tuple[int, bytes]:
        request = urllib.request.Request(url)
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        timeout = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"))
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return int(answer.status), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [_Redirects()]
        if self._address.lower().startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=_tls()))
        return urllib.request.build_opener(*handlers)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and repeats the password only to the same host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See HTTPRedirectHandler."""
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        known = req.get_header("Authorization")
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        upgrade = (before.scheme, after.scheme) == ("http", "https") and before.hostname == after.hostname
        if made is not None and known and (before[:2] == after[:2] or upgrade):
            made.add_unredirected_header("Authorization", known)
        return made


def _authorization(user: str | None, password: str | None) -> str:
    """The header's value; "" for none. As in MLflow's client, the address comes before the variables."""
    if user is None or password is None:
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    else:
        user, password = unquote(user), unquote(password)
    if user and password:
        return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else ""


def _tls() -> ssl.SSLContext:
    get = os.environ.get
    if get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        named = get("MLFLOW_TRACKING_SERVER_CERT_PATH") or get("REQUESTS_CA_BUNDLE") or get("CURL_CA_BUNDLE")
        context = ssl.create_default_context(cafile=named or _certificates())
    if own := get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        context.load_cert_chain(own)
    return context


def _certificates() -> str | None:
    """The file of well-known certificates that MLflow's client uses; None for those of the system."""
    try:
        import certifi
    except ImportError:
        return None
    return certifi.where()
