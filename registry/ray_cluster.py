"""Connects to a Ray cluster, or starts one on this machine, for `onward fleet` and `onward batch`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from onward.registry import processors
from onward.registry.errors import NotReady, StoreUnreachable, UsageError
from onward.registry.text import first_line
from onward.registry.uri import sqlite_file

# Ray reports the usage of clusters to its makers unless it is told not to.
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# Ray reads this when it is imported: "token" sends and requires a token.
_AUTH_MODE = "RAY_AUTH_MODE"


def require_ray() -> None:
    """Check that Ray is installed, and let it use this user's token, if there is one.

    Raises:
        NotReady: It is not.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if has_token():
        os.environ.setdefault(_AUTH_MODE, "token")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise NotReady("Ray is not installed: pip install 'onward[fleet]'") from None


def has_token() -> bool:
    """Whether this user has a token for Ray clusters: in a variable of Ray's, or in ~/.ray/auth_token."""
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(os.environ.get(name) for name in variables) or (Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def connected(address: str | None, resources: Mapping[str, float]) -> Iterator[Any]:
    """Connect to a cluster for the length of the context.

    Args:
        address: The cluster's address, such as ray://head:10001 or head:6379; None to start one on this machine.
        resources: What this machine offers beside its CPUs if the cluster is started here.

    Yields:
        The module `ray`.

    Raises:
        NotReady: Ray is not installed.
        StoreUnreachable: The cluster does not answer.
    """
    require_ray()
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"num_cpus": processors.count(), "resources": dict(resources), "include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:  # Ray's errors of connecting share no base but this
        place = address or "of this machine"
        raise StoreUnreachable(f"the Ray cluster {place} does not answer: {first_line(error)}") from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints messages about lost machines to stdout
            yield ray
    finally:
        ray.shutdown()


def cause(error: Exception) -> str:
    """The last line of an error of Ray's, which contains the cause; the lines before it are where it occurred."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def require_reachable(store: str) -> None:
    """Check that the machines of a cluster can reach the MLflow store.

    Args:
        store: The store's URI.

    Raises:
        UsageError: The store is a file of this machine.
    """
    if sqlite_file(store) is not None:
        raise UsageError(
            "the machines of a cluster cannot reach an MLflow store in a file: start a server, and name it with "
            "MLFLOW_TRACKING_URI"
        )
