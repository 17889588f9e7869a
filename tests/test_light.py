"""A serving host has `onward[serve,cpu]` and nothing else: no pandas, scikit-learn, DVC, torch or database packages."""

from __future__ import annotations

import base64
import http.server
import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from onward.registry.errors import Refused, StoreUnreachable, UsageError
from onward.registry.store.direct_rows import ServerRows, SqliteRows, open_rows
from onward.registry.store.store import Store
from tests.conftest import not_none
from tests.light import closure, environment
from tests.servers import answers, free_port, plain_mlflow_server, wait_until
from tests.store_factory import stage, three_candidates

HEAVY = {"pandas", "scikit-learn", "scipy", "dvc", "torch", "matplotlib", "sqlalchemy", "alembic", "flask", "mlflow"}
FIRST = """
import json, sys, numpy
from onward.registry.inference.session import InferenceSession
session = InferenceSession("cnn@staging")
found = session.predict(numpy.ones((2, 4), numpy.float32))
print(json.dumps({"version": session.metadata.version, "sum": float(found.sum()), "modules": sorted(sys.modules)}))
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


@pytest.fixture
def server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow server of the store, which is then the store in use."""
    with plain_mlflow_server(store.uri, tmp_path) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield url


def test_a_serving_host_installs_nothing_heavy() -> None:
    assert closure("serve", "cpu") & HEAVY == set()
    assert closure("pipeline") >= HEAVY
    assert closure("store") >= {"sqlalchemy", "mlflow"}


def test_a_host_with_these_packages_alone_serves_from_a_server_and_from_its_cache(
    store: Store, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(tmp_path / "light", "serve", "cpu")
    # MLflow would serve the files itself; here, the store names folders of this machine.
    command = [str(python), "-m", "onward.cli", "serve", "cnn@staging", "--poll", "0.3", "--port"]
    port = free_port()
    with subprocess.Popen([*command, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{port}/v2/models/cnn"
        try:
            wait_until(lambda: answers(f"{url}/ready") or process.poll() is not None)
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
            stage(store, 2)
            wait_until(lambda: json.load(urllib.request.urlopen(url))["versions"] == ["2"])
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    first = subprocess.run([python, "-c", FIRST], capture_output=True, text=True, check=True)
    found = json.loads(first.stdout)
    assert (found["version"], found["sum"]) == (2, 16.0)
    assert not {"mlflow", "torch", "pandas", "fastapi"} & set(found["modules"]), (
        "the cache is warm, and no import waits"
    )
    for arguments in (["promote", "cnn", "3", "--to", "staging", "--reason", "because"], ["check", "cnn@staging"]):
        done = subprocess.run([python, "-m", "onward.cli", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(subprocess.check_output([python, "-c", FIRST]))["version"] == 3
    # The embedded store needs databases as soon as files are downloaded; what is cached needs none.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert json.loads(subprocess.check_output([python, "-c", FIRST]))["version"] == 3
    missing = subprocess.run([python, "-m", "onward.cli", "history", "cnn"], capture_output=True, text=True)
    assert (missing.returncode, "install onward[store]" in missing.stderr) == (2, True), missing.stderr


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_rows_are_the_same_without_mlflow(kind: str, store: Store, request: pytest.FixtureRequest) -> None:
    for version in (2, 3, 2, 1):
        stage(store, version)
    url = request.getfixturevalue("server") if kind == "server" else store.uri
    direct = open_rows(url)
    assert isinstance(direct, ServerRows if kind == "server" else SqliteRows)
    fields = ("name", "creation_timestamp", "current_stage", "source", "run_link", "tags")
    for name in ("staging.cnn", "cnn", "nothing"):
        expected, found = list(store.versions.newest_first(name)), list(direct.newest_first(name))
        assert [int(one.version) for one in found] == [int(one.version) for one in expected]
        for row, one in zip(found, expected, strict=True):
            assert [getattr(row, field) or None for field in fields] == [
                getattr(one, field) or None for field in fields
            ]
    assert direct.get("cnn", 99) is None
    assert not_none(direct.get("cnn", 2)).tags == not_none(store.versions.get("cnn", 2)).tags
    store._client.set_model_version_tag("staging.cnn", "2", "mlflow.prompt.is_prompt", "true")
    with pytest.raises(Refused, match=r"MLflow hides the versions of staging\.cnn, because version 2"):
        list(direct.newest_first("staging.cnn"))


def test_settings_that_only_mlflow_handles_are_left_to_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            assert open_rows(store.uri) is None
            assert open_rows("http://127.0.0.1:1") is None
    assert open_rows("postgresql://x@y/z") is None


def test_a_session_reports_a_server_that_does_not_answer_as_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward.registry.inference.session import InferenceSession

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnreachable, match="could not be reached"):
        InferenceSession("cnn@staging")


def test_a_database_without_its_packages_is_explained(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from onward.registry.store import connection

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else real(name))
    with pytest.raises(UsageError, match=r"install onward\[store\]"):
        connection.connect(store.uri)


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers as `answers` says, by path, and records the paths and the logins."""

    answers: ClassVar[dict[str, list[tuple[int, str]]]]
    asked: ClassVar[list[tuple[str, str | None]]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers.get("Authorization")))
        left = self.answers[path]
        status, text = left.pop(0) if len(left) > 1 else left[0]
        self.send_response(status)
        if status in (301, 302):
            self.send_header("Location", text)
            text = ""
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Answering]]]:
    """A web server, and what it answers."""

    class Handler(Answering):
        answers: ClassVar = {}
        asked: ClassVar = []

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    thread.join()
    server.server_close()


SEARCH = "/api/2.0/mlflow/model-versions/search"


@pytest.mark.parametrize(
    ("status", "text", "error", "words"),
    [
        (401, "no", UsageError, "does not know you"),
        (403, "no", Refused, r"does not allow .* \(model-versions/search\)"),
        (500, "{}", StoreUnreachable, "error code 500"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE"}', StoreUnreachable, "INVALID_PARAMETER_VALUE"),
        (200, "<html>", StoreUnreachable, "did not answer like an MLflow server"),
        (200, "[]", StoreUnreachable, "did not answer like an MLflow server"),
        (200, '{"model_versions": [{"name": "x"}]}', StoreUnreachable, "did not answer like an MLflow server"),
    ],
)
def test_answers_that_are_errors_are_translated(
    status: int, text: str, error: type[Exception], words: str, answering: tuple[str, type[Answering]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place, handler = answering
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{place}")
    handler.answers[SEARCH] = [(status, text)]
    with pytest.raises(error, match=words):
        ServerRows(f"http://{place}").page("cnn", 0, 3)
    assert len(handler.asked) == (3 if status == 500 else 1)


def test_a_failure_is_tried_again(answering: tuple[str, type[Answering]]) -> None:
    place, handler = answering
    handler.answers[SEARCH] = [(503, ""), (200, "{}")]
    assert ServerRows(f"http://{place}").page("cnn", 0, 3) == []
    assert ServerRows(f"http://{place}/").prompt("cnn") is None


def test_logins_come_from_the_address_and_the_variables(
    answering: tuple[str, type[Answering]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, handler = answering
    handler.answers[SEARCH] = [(200, "{}")]

    def sent(address: str, **variables: str) -> str | None:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(f"MLFLOW_TRACKING_{name}", value)
            ServerRows(address).page("cnn", 0, 3)
        return handler.asked[-1][1]

    assert sent(f"http://{place}") is None
    assert sent(f"http://{place}", TOKEN="t") == "Bearer t"
    ann = f"Basic {base64.b64encode(b'ann:a@b').decode()}"
    assert sent(f"http://{place}", USERNAME="ann", PASSWORD="a@b", TOKEN="t") == ann
    assert sent(f"http://ann:a%40b@{place}", USERNAME="bob", PASSWORD="b") == ann


def test_a_password_is_not_repeated_to_another_host(
    answering: tuple[str, type[Answering]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, handler = answering
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    port = place.partition(":")[2]
    for target, expected in ((f"http://{place}/x", "Bearer t"), (f"http://localhost:{port}/x", None)):
        handler.answers |= {SEARCH: [(302, target)], "/x": [(200, "{}")]}
        ServerRows(f"http://{place}").page("cnn", 0, 3)
        assert handler.asked[-2:] == [(SEARCH, "Bearer t"), ("/x", expected)]
