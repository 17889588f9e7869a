"""Real servers for tests: Postgres from the system's packages, and MLflow with basic auth on it."""

from __future__ import annotations

import os
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

ADMIN = ("admin", "correct horse battery staple")


def postgres_binaries() -> Path | None:
    """The folder with initdb and postgres, or None where they are not installed."""
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
    """A Postgres of its own with the databases `mlflow` and `auth`; yields its URI, without the database."""
    # Not below pytest's folders: Postgres refuses to run as root, and another user cannot enter those.
    folder = Path(tempfile.mkdtemp(prefix="onward-postgres-"))
    as_user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    if as_user:
        shutil.chown(folder, **as_user)
    data, port = folder / "data", free_port()
    command = [str(binaries / "initdb"), "-D", str(data), "-U", "onward", "--auth=trust", "--no-sync"]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **as_user)
    options = ["-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [str(binaries / "postgres"), "-D", str(data), *options], stdout=log, stderr=log, cwd="/", **as_user
        )
    try:
        login = ["-h", "127.0.0.1", "-p", str(port), "-U", "onward"]
        _wait(lambda: subprocess.run([str(binaries / "pg_isready"), *login], capture_output=True).returncode == 0)
        for name in ("mlflow", "auth"):
            subprocess.run([str(binaries / "createdb"), *login, name], check=True, capture_output=True)
        yield f"postgresql://onward@127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown: clients are cut off
        server.wait(60)
        shutil.rmtree(folder)


@contextmanager
def mlflow_server(database: str, folder: Path) -> Iterator[str]:
    """`mlflow server` with basic auth; everybody may read, and what else is granted. Yields its URL."""
    port = free_port()
    config = folder / "basic_auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {database}/auth\nadmin_username = {ADMIN[0]}\n"
        "auth_cache_ttl_seconds = 600\n"  # each check of a password takes a tenth of a second
    )
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for tests",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"{database}/mlflow", "--workers", "2"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(lambda: server.poll() is not None or _answers(f"{url}/health"))
        if server.poll() is not None:
            raise TimeoutError
        yield url
    except TimeoutError:
        raise AssertionError((folder / "log").read_text()[-3000:]) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def _wait(ready: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.2)
