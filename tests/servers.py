"""Real servers for tests: Postgres from system packages, an S3-compatible store, and MLflow with basic auth on both.

MLflow starts with the command and settings of compose.yaml.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
# Passwords as docs/team-setup.md describes them for .env: letters and digits.
PASSWORDS = {
    "POSTGRES_PASSWORD": "postgresOfTests1",
    "OBJECTS_PASSWORD": "objectsOfTests1",
    "ADMIN_PASSWORD": "administratorOfTests1",
    "SECRET_KEY": "secretOfTests1",
}
ADMIN = ("admin", PASSWORDS["ADMIN_PASSWORD"])


def postgres_binaries() -> Path | None:
    """The folder with initdb and postgres, or None if they are not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return newest[-1].parent if newest else None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def postgres(binaries: Path) -> Iterator[str]:
    """Start a Postgres with the databases `mlflow` and `auth`; yields its URI without the database."""
    # Not in a pytest folder: Postgres does not run as root, and another user cannot enter those folders.
    folder = Path(tempfile.mkdtemp(prefix="onward-postgres-"))
    owner = "postgres" if os.getuid() == 0 else None
    if owner:
        shutil.chown(folder, owner, owner)
    data, port = folder / "data", free_port()
    command = [str(binaries / "initdb"), "-D", str(data), "-U", "onward", "--auth=trust", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, cwd="/", user=owner, group=owner)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options],
            stdout=log,
            stderr=log,
            cwd="/",
            user=owner,
            group=owner,
        )
    try:
        login = ["-h", "127.0.0.1", "-p", str(port), "-U", "onward"]
        wait_until(lambda: subprocess.run([str(binaries / "pg_isready"), *login], capture_output=True).returncode == 0)
        for name in ("mlflow", "auth"):
            subprocess.run([str(binaries / "createdb"), *login, name], check=True, capture_output=True)
        yield f"postgresql://onward@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown, which disconnects clients
        server.wait(60)
        shutil.rmtree(folder)


@contextmanager
def objects(folder: Path) -> Iterator[str]:
    """Start an S3-compatible store with the bucket `mlflow`; yields its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    with open(folder / "objects.log", "wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: server.poll() is not None or answers(url))
        bucket(url).create()
        yield url
    finally:
        server.terminate()
        server.wait(60)


def bucket(url: str) -> Any:
    """The bucket of `objects` with the MLflow files."""
    import boto3

    credentials = {"aws_access_key_id": "onward", "aws_secret_access_key": PASSWORDS["OBJECTS_PASSWORD"]}
    return boto3.resource("s3", endpoint_url=url, region_name="us-east-1", **credentials).Bucket("mlflow")


def compose(variables: dict[str, str]) -> dict[str, Any]:
    """Read compose.yaml with the variables of .env substituted as docker does."""

    def value(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(":-")
        if not default:
            return variables[name.partition(":?")[0]]
        return variables.get(name, default)

    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{([^}]+)\}", value, (ROOT / "compose.yaml").read_text()))
    return loaded


@contextmanager
def mlflow_server(database: str, objects_url: str, folder: Path) -> Iterator[str]:
    """Start the service `mlflow` of compose.yaml on this machine; yields its URL."""
    port, config = free_port(), folder / "basic_auth.ini"
    loaded = compose({**PASSWORDS, "MLFLOW_HOSTS": f"127.0.0.1:{port}"})
    service, here = loaded["services"]["mlflow"], database.rpartition("@")[2]

    def local(text: str) -> str:
        """Replace service names by ports of this machine."""
        return text.replace("@postgres/", f"@{here}/").replace("http://objects:9000", objects_url)

    config.write_text(local(loaded["configs"]["auth"]["content"]))
    environment = {**os.environ, **{name: local(value) for name, value in service["environment"].items()}}
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        # Webhook receivers also run on this machine.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # otherwise a new webhook takes effect after a minute
    }
    command = shlex.split(local(service["command"]))
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port)), ("--workers", "2")):
        command[command.index(option) + 1] = value
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: server.poll() is not None or answers(f"{url}/health"))
        if server.poll() is not None:
            raise TimeoutError
        yield url
    except TimeoutError:
        raise AssertionError((folder / "log").read_text()[-3000:]) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


@contextmanager
def plain_mlflow_server(store: str, folder: Path) -> Iterator[str]:
    """Start an MLflow server without users; yields its URL.

    Args:
        store: The URI of its store.
        folder: Where it writes its log, and files that have no other place.
    """
    url = f"http://127.0.0.1:{free_port()}"
    command = ["mlflow", "server", "--port", url.rpartition(":")[2], "--backend-store-uri", store, "--workers", "1"]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    try:
        wait_until(lambda: server.poll() is not None or answers(f"{url}/health"))
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def wait_until(ready: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until `ready()` is true, or raise TimeoutError."""
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.2)
