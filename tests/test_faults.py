"""Every failure of a command prints one line, has its own exit code, and reports what was done."""

from __future__ import annotations

import errno
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from onnx import TensorProto, helper, numpy_helper

from onward.registry import npz
from onward.registry.cli.faults import explained
from onward.registry.errors import MachineFault, OnwardError, StoreUnreachable, UsageError
from onward.registry.gates import policy
from onward.registry.operations import overview, promotion, pruning, transfer
from onward.registry.store.connection import reachable
from onward.registry.store.store import Store
from onward.stages.config import load
from tests.conftest import ROOT, Command
from tests.store_factory import add_candidate, fresh_store, scale_model


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid .npz file next to a model that accepts it."""
    monkeypatch.chdir(tmp_path)
    scale_model(tmp_path / "m.onnx", 2)
    np.savez(tmp_path / "x.npz", x=np.arange(40, dtype=np.float32).reshape(10, 4))
    return tmp_path / "x.npz"


# Servers with invalid responses

NONSENSE = [
    (200, b"<html>\n<h1>Sign in</h1></html>"),
    (200, b"[]"),
    (200, b"null"),
    (200, b'{"registered_models": 5}'),
    (200, b'{"registered_models": [{"name": ["x"]}]}'),
    (200, b'{"registered'),
    (200, b"\xff{"),
    (404, b"<html>no such page</html>"),
    (502, b"<html>bad gateway \x1b[31m</html>"),
    (500, b'{"error_code": "INTERNAL_ERROR", "message": "out\\n  of order"}'),
    (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "what?"}'),
]


@pytest.mark.parametrize(("code", "body"), NONSENSE)
def test_an_invalid_server_response_is_not_reported_as_an_unmet_gate(
    onward: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, body: bytes
) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    try:
        code, out, err = onward("status")
    finally:
        server.shutdown()
        server.server_close()
    assert (code, out, err.count("\n")) == (4, "", 1), err
    assert err.removesuffix("\n").isprintable()
    assert "changed" not in err


# This machine

FAULTS = [
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 5, "/tmp/x: No space left on device; free space"),
    (PermissionError(errno.EACCES, "Permission denied", "/cache"), 5, "/cache: Permission denied; look at its"),
    (OSError(errno.EROFS, "Read-only file system", "/cache"), 5, "XDG_CACHE_HOME"),
    (MemoryError(), 5, "does not have enough memory"),
    (
        ZeroDivisionError("x\ny"),
        5,
        "unexpected ZeroDivisionError: x y. This is a defect of Onward: run the command again with",
    ),
    (RecursionError("deep"), 5, "report it"),
    (ConnectionResetError(errno.ECONNRESET, "reset"), 4, "could not be reached"),
    (TimeoutError("slow"), 4, "could not be reached"),
    (ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"), 2, "needs the Python package psycopg2"),
    (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2, "not UTF-8"),
    (UsageError("as it is"), 2, "as it is"),
]


@pytest.mark.parametrize(("error", "code", "words"), FAULTS, ids=lambda value: type(value).__name__)
def test_every_exception_becomes_one_line_and_an_exit_code(
    onward: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    monkeypatch.setattr(overview, "status", lambda: (_ for _ in ()).throw(error))
    found, out, err = onward("status")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_a_traceback_is_printed_only_on_request(onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:secret@host/db")
    monkeypatch.setattr(overview, "status", lambda: (_ for _ in ()).throw(ValueError("for bob with 'secret'\x1b")))
    assert "Traceback" not in onward("status")[2]
    for arguments, variable in ((["--debug", "status"], ""), (["status"], "1")):
        monkeypatch.setenv("ONWARD_DEBUG", variable)
        code, _, err = onward(*arguments)
        assert code == 5
        assert "Traceback" in err
        for word in ("secret", "bob", "\x1b"):
            assert word not in err
    monkeypatch.setenv("ONWARD_DEBUG", "0")
    assert "Traceback" not in onward("status")[2]


@pytest.mark.parametrize("words", ["database or disk is full", "attempt to write a readonly database"])
def test_a_full_disk_under_the_store_is_a_machine_fault(
    words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sqlalchemy.exc import OperationalError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(MachineFault), reachable():
        raise OperationalError("INSERT", {}, Exception(f"(sqlite3.OperationalError) {words}"))


def test_an_unwritable_cache_is_a_machine_fault(
    store: Store, onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_candidate(store, "cnn")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code, out, err = onward("inspect", "cnn/1")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert str(tmp_path / "file") in err


def test_a_graph_that_onnx_runtime_cannot_run_is_a_machine_fault(
    samples: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = numpy_helper.from_array(np.array([3, 3], np.int64), "shape")
    shapes: list[tuple[str, list[int | str]]] = [("x", ["n", 4]), ("y", [3, 3])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes)
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="bad\x1b[31m")
    graph = helper.make_graph([node], "g", [x], [y], [target])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "bad.onnx")
    command = [sys.executable, "-m", "onward.cli", "predict", "bad.onnx", "--input", "x.npz"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), done.stderr
    assert r"bad\x1b[31m" in done.stderr


# Files from users


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400), at=st.integers(0, 400), bits=st.integers(1, 255))
@example(cut=400, at=150, bits=1)
@example(cut=200, at=0, bits=1)
def test_a_corrupt_npz_file_is_a_usage_error(samples: Path, cut: int, at: int, bits: int) -> None:
    content = bytearray(samples.read_bytes())
    content[at % len(content)] ^= bits
    broken = samples.with_name("broken.npz")
    broken.write_bytes(content[: len(content) - (400 - cut)])
    assert "\n" not in message_for(broken)


def message_for(path: Path) -> str:
    """The error for an .npz file; empty if it is readable after all."""
    try:
        npz.read(path)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["npy", "object", "short", "crc", "text", "empty", "folder", "none"])
def test_an_invalid_npz_file_is_reported_in_one_line(samples: Path, onward: Command, kind: str) -> None:
    file = samples.with_name(f"{kind}.npz")
    if kind == "npy":
        with open(file, "wb") as stream:
            np.save(stream, np.ones(3))
    elif kind == "object":
        np.savez(file, x=np.array([{}], dtype=object))
    elif kind in ("short", "text"):
        with zipfile.ZipFile(samples) as whole, zipfile.ZipFile(file, "w") as made:
            made.writestr("x.npy" if kind == "short" else "x.txt", whole.read("x.npy")[:-4])
    elif kind == "crc":
        content = bytearray(samples.read_bytes())
        content[200] ^= 1
        file.write_bytes(content)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "folder":
        file.mkdir()
    code, out, err = onward("predict", "m.onnx", "--input", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--input {file}" in err


BAD_YAML = {
    "latin-1": "models: {}\n# caf\u00e9\n".encode("latin-1"),
    "recursive": b"models: {}\nenvironments: &a {staging: *a}\n",
    "recursive models": b"models: &a {toy: *a}\ndefaults: *a\n",
    "recursive list": b"models: {}\nenvironments: {staging: {from: candidate, require: &r [*r]}}\n",
    "deep": b"models: " + b"[" * 5000,
    "no date": b"models: {}\nx: 2024-99-99\n",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("kind", BAD_YAML)
def test_invalid_yaml_in_params_is_a_usage_error(project: Path, kind: str) -> None:
    (project / "params.yaml").write_bytes(BAD_YAML[kind])
    for read in (policy.read, load.read):
        with pytest.raises(UsageError, match=r"\Aparams\.yaml:.*\Z"):
            read()


def test_a_yaml_alias_used_twice_is_not_a_cycle(project: Path) -> None:
    environments = "{a: {from: candidate, require: &both [parity]}, b: {from: a, require: *both}}"
    (project / "params.yaml").write_text(f"models: {{}}\nenvironments: {environments}\n")
    assert list(policy.read()) == ["a", "b"]


# The ends of a command


def started(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "onward.cli", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        **streams,
    )


def test_ctrl_c_prints_one_line(onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(overview, "status", interrupted)
    try:
        assert onward("status") == (130, "", "onward: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closed_pipe_is_not_an_error(store: Store) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    reader, writer = os.pipe()
    os.close(reader)
    process = started("history", "cnn", stdout=writer)
    os.close(writer)
    assert (process.communicate()[1], process.returncode) == (b"", 141)


def test_an_output_closed_before_the_start_is_not_an_error(store: Store) -> None:
    command = f"{sys.executable} -m onward.cli status >&-"
    done = subprocess.run(command, shell=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--help"]])
def test_an_unwritable_output_is_reported(store: Store, arguments: list[str]) -> None:
    add_candidate(store, "cnn")
    with open("/dev/full", "wb") as full:
        process = started(*arguments, stdout=full)
        told = process.communicate()[1]
    assert (process.returncode, told.count(b"\n")) == (5, 1), told
    assert b"No space left on device" in told


# Partially completed commands


class Flaky:
    """A client that fails from the given call of a method on."""

    def __init__(self, client: MlflowClient, method: str, calls: int, also: bool = False) -> None:
        self._client, self._method, self._left, self._also = client, method, calls, also

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name != self._method:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left >= 0:
                return found(*arguments, **options)
            if self._also:
                found(*arguments, **options)
            raise ConnectionError("gone")

        return call


def flaky_client(client: MlflowClient, method: str, calls: int, also: bool = False) -> Any:
    return Flaky(client, method, calls, also)


def test_an_interrupted_prune_reports_the_deleted_versions(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in (1, 2, 3, 4):
        add_candidate(store, "cnn", factor)
    flaky = Store(flaky_client(store._client, "delete_model_version", 1))
    with pytest.raises(StoreUnreachable, match="Deleted before that: 3; version 2 may be partly deleted") as told:
        pruning.prune("cnn", "0h", store=flaky)
    assert "nothing was changed" not in str(told.value)
    pruning.prune("cnn", "0h", store=store)
    assert [candidate.version for candidate in store.candidates("cnn")] == [4]


def test_partially_created_environments_are_named(store: Store) -> None:
    flaky = Store(flaky_client(store._client, "create_registered_model", 1))
    with pytest.raises(
        StoreUnreachable, match=r"Created before that: environments/staging, staging.cnn, environments/prod"
    ):
        promotion.create_environments(["cnn"], flaky)


def test_an_interrupted_import_reports_the_imported_logs(store: Store, tmp_path: Path) -> None:
    add_candidate(store, "cnn")
    promotion.promote("cnn", "staging", reason="because", store=store)
    promotion.promote("cnn", "production", reason="because", store=store)
    lines = transfer.export(["cnn"], store=store)
    file = tmp_path / "log.jsonl"
    file.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    for name in ("staging.cnn", "production.cnn"):
        store._client.delete_registered_model(name)
    flaky = Store(flaky_client(store._client, "create_model_version", 1))
    with pytest.raises(StoreUnreachable, match=r"Imported completely before that: (production|staging).cnn; the next"):
        transfer.import_(file, store=flaky)
    assert sum(log.added for log in transfer.import_(file, store=store)) == 1


@pytest.mark.parametrize("arrives", [True, False])
def test_a_lost_response_is_looked_up_and_not_reported_as_unchanged(store: Store, arrives: bool) -> None:
    add_candidate(store, "cnn")
    flaky = Store(flaky_client(store._client, "create_model_version", 0, also=arrives))
    if arrives:
        assert promotion.promote("cnn", "staging", reason="because", store=flaky).changed
        return
    with pytest.raises(StoreUnreachable, match="does not contain the entry now: `onward history cnn` shows") as told:
        promotion.promote("cnn", "staging", reason="because", store=flaky)
    assert "nothing was changed" not in str(told.value)


def test_errors_of_onward_are_not_wrapped() -> None:
    error = OnwardError("x")
    assert explained(error) is error
