"""`onward serve`: a real server on a real store. It follows the environment, and drops no request while it does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from onward.registry.errors import StoreUnreachable
from onward.registry.inference.session import InferenceSession
from onward.registry.operations import promotion
from onward.registry.serve.grpc_messages import MESSAGES, SERVICE
from onward.registry.serve.limits import Limits
from onward.registry.serve.observer import Observation
from onward.registry.serve.server import Options, Server
from onward.registry.store import connection
from onward.registry.store.store import Store
from tests.store_factory import add_candidate, stage, three_candidates

X = np.arange(8, dtype=np.float32).reshape(2, 4)
PATIENCE_S = 60.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


class Client:
    """Sends requests to a server and returns status and body."""

    def __init__(self, port: int, token: str = "") -> None:
        self.url, self.token = f"http://127.0.0.1:{port}", token

    def call(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {name.replace("_", "-"): v for name, v in headers.items()}
        )
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                text, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            text, status = error.read(), error.code
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def infer(self, values: Any = X, path: str = "/v2/models/cnn/infer", **changes: Any) -> tuple[int, Any]:
        entry = {"name": "x", "datatype": "FP32", "shape": list(np.shape(values)), "data": np.asarray(values).tolist()}
        return self.call(path, {"id": "7", "inputs": [entry | changes]})


class Running:
    """A server in a thread of this process."""

    def __init__(self, *targets: str, **options: Any) -> None:
        self.server = Server(targets or ("cnn@staging",), Options(port=0, poll=0.1, **options))
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Running:
        self.thread.start()
        wait_for(lambda: self.server.port and (self.server.options.grpc_port is None or self.server.grpc_port))
        self.client = Client(self.server.port)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.thread.join()


def wait_for(condition: Any) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.fixture
def running(store: Store) -> Iterator[Running]:
    with Running() as server:
        yield server


def test_a_model_is_described_and_answers_with_its_version(running: Running) -> None:
    client = running.client
    assert client.call("/v2/health/live") == (200, {"live": True})
    assert client.call("/v2/health/ready") == (200, {"ready": True, "registry_unreachable_for": []})
    status, about = client.call("/v2/models/cnn")
    assert (status, about["versions"], about["inputs"][0]["datatype"]) == (200, ["1"], "FP32")
    assert client.call("/v2/models/cnn/versions/1/ready")[0] == 200
    status, answer = client.infer()
    (output,) = answer["outputs"]
    assert (status, answer["model_version"], answer["id"], output["shape"]) == (200, "1", "7", [2, 4])
    assert np.array_equal(np.reshape(output["data"], output["shape"]), X)


def test_raw_tensors_are_taken_and_given(running: Running) -> None:
    entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": {"binary_data_size": X.nbytes}}
    head = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    status, body = running.client.call("/v2/models/cnn/infer", head + X.tobytes(), **length)
    assert status == 200
    assert np.array_equal(np.frombuffer(body[-X.nbytes :], np.float32).reshape(2, 4), X)


def test_bad_requests_get_the_reason_and_the_right_status(running: Running) -> None:
    client = running.client
    for wanted, words, (status, body) in (
        (404, "this server has cnn", client.infer(path="/v2/models/other/infer")),
        (404, "version 1 loaded, not 9", client.infer(path="/v2/models/cnn/versions/9/infer")),
        (404, "there is no", client.call("/v2/nothing")),
        (405, "there is no GET", client.call("/v2/models/cnn/infer")),
        (400, "input is missing" if False else "no input z", client.infer(name="z")),
        (400, "the model takes x float32", client.infer(np.zeros((2, 3)))),
        (400, "not JSON", client.call("/v2/models/cnn/infer", b"{")),
        (400, "int64", client.infer(np.zeros((2, 4), int), datatype="INT64")),
    ):
        assert (status, words in body["error"]) == (wanted, True), body
    text = client.call("/metrics")[1].decode()
    assert 'nv_inference_request_failure{model="cnn",version="1"}' in text


def test_a_promotion_and_a_rollback_are_served_and_no_request_is_dropped(running: Running, store: Store) -> None:
    answers: list[tuple[int, Any]] = []
    done = threading.Event()

    def ask() -> None:
        client = Client(running.server.port)
        while not done.is_set():
            answers.append(client.infer())

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (2, 3):
        stage(store, version)
        wait_for(lambda version=version: running.client.infer()[1].get("model_version") == str(version))
    promotion.rollback("cnn", "staging", reason="because", store=store)
    wait_for(lambda: running.client.infer()[1].get("model_version") == "2")
    done.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    for _, answer in answers:  # version n multiplies by n
        assert answer["outputs"][0]["data"][1] == float(answer["model_version"])
    assert {answer["model_version"] for _, answer in answers} == {"1", "2", "3"}
    assert 'onward_swaps{model="cnn",version="3"} 1.0' in running.client.call("/metrics")[1].decode()


def test_a_version_that_does_not_repeat_its_answers_never_serves(running: Running, store: Store) -> None:
    bad = add_candidate(store, "cnn", 5, recorded_factor=6)
    stage(store, bad)
    model = running.server.models["cnn"]
    wait_for(lambda: any(event.kind == "refused" for event in model.events))
    assert running.client.infer()[1]["model_version"] == "1"
    assert "does not repeat its recorded answers" in model.events[-1].text
    assert 'onward_refused_versions{model="cnn",version="1"} 1.0' in running.client.call("/metrics")[1].decode()
    stage(store, 2)
    wait_for(lambda: running.client.infer()[1]["model_version"] == "2")


def test_an_unreachable_registry_is_reported_and_the_model_stays(
    running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = running.server.models["cnn"]

    def fails(**_: Any) -> bool:
        raise StoreUnreachable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(model.session, "refresh", fails)
        wait_for(lambda: not model.reachable)
        assert running.client.infer()[0] == 200
        assert running.client.call("/v2/health/ready")[1] == {"ready": True, "registry_unreachable_for": ["cnn"]}
    wait_for(lambda: model.reachable)


def test_the_server_starts_from_the_cache_while_the_registry_cannot_be_reached(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward.registry.store import last_live, resolve

    InferenceSession("cnn@staging")

    def fails(*_: Any) -> Any:
        raise StoreUnreachable("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(resolve, "resolve", fails)
        with Running() as server:
            assert server.client.infer()[1]["model_version"] == "1"
            assert server.client.call("/v2/health/ready")[1]["registry_unreachable_for"] == ["cnn"]
            patch.undo()
            stage(store, 2)
            wait_for(lambda: server.client.infer()[1]["model_version"] == "2")
            assert server.client.call("/v2/health/ready")[1]["registry_unreachable_for"] == []
    recalled = last_live.recall("cnn@staging", connection.tracking_uri())
    assert recalled is not None
    assert recalled.version == 2


def test_a_full_queue_answers_429_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.registry.serve import engine

    begun, go_on = threading.Event(), threading.Event()
    real = engine.compute

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return real(*arguments)

    with Running(queue=0, workers=1) as server:
        monkeypatch.setattr(engine, "compute", slow)
        answers: list[tuple[int, Any]] = []
        waiting = threading.Thread(target=lambda: answers.append(Client(server.server.port).infer()))
        waiting.start()
        assert begun.wait(PATIENCE_S)
        status, body = server.client.infer()
        assert (status, "try again later" in body["error"]) == (429, True)
        go_on.set()
        waiting.join()
        assert answers[0][0] == 200


def test_requests_are_limited_in_size_and_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.registry.serve import engine

    with Running(limits=Limits(bytes=300, seconds=0.2)) as server:
        assert server.client.infer()[0] == 200
        assert server.client.infer(np.zeros((50, 4)))[0] == 413
        monkeypatch.setattr(engine, "compute", lambda *_: time.sleep(1))
        assert server.client.infer()[0] == 504


class Grpc:
    """Calls a server over gRPC."""

    def __init__(self, port: int, token: str = "") -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.metadata = [("authorization", f"Bearer {token}")] if token else []

    def __call__(self, method: str, timeout: float = PATIENCE_S, **fields: Any) -> Any:
        request, response = MESSAGES[f"{method}Request"], MESSAGES[f"{method}Response"]
        call = self.channel.unary_unary(f"/{SERVICE}/{method}", request.SerializeToString, response.FromString)
        return call(request(**fields), metadata=self.metadata, timeout=timeout, wait_for_ready=True)

    def infer(self, values: Any = X, raw: bool = True, **fields: Any) -> Any:
        entry = {"name": "x", "datatype": "FP32", "shape": np.shape(values)}
        if raw:
            return self("ModelInfer", model_name="cnn", inputs=[entry], raw_input_contents=[values.tobytes()], **fields)
        entry["contents"] = {"fp32_contents": values.ravel()}
        return self("ModelInfer", model_name="cnn", inputs=[entry], **fields)


@pytest.mark.parametrize("raw", [True, False])
def test_grpc_answers_with_the_version_and_follows_the_environment(store: Store, raw: bool) -> None:
    with Running(grpc_port=0) as server:
        client = Grpc(server.server.grpc_port)
        assert client("ServerLive").live
        assert client("ServerReady").ready
        assert client("ModelReady", name="cnn").ready
        about = client("ModelMetadata", name="cnn")
        assert [(one.name, one.datatype) for one in about.inputs] == [("x", "FP32")]
        answer = client.infer(raw=raw, id="7")
        assert (answer.model_version, answer.id, answer.outputs[0].name) == ("1", "7", "y")
        assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 4), X)
        stage(store, 2)
        wait_for(lambda: client.infer().model_version == "2")


def test_grpc_errors_have_the_right_code_and_the_reason(store: Store) -> None:
    with Running(grpc_port=0, tokens=frozenset({"secret"})) as server:
        port = server.server.grpc_port
        client = Grpc(port, "secret")
        assert Grpc(port)("ServerLive").live
        calls: list[tuple[grpc.StatusCode, str, Callable[[], Any]]] = [
            (grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed", lambda: Grpc(port).infer()),
            (grpc.StatusCode.NOT_FOUND, "version 1 loaded, not 9", lambda: client.infer(model_version="9")),
            (grpc.StatusCode.NOT_FOUND, "there is no model 'other'", lambda: client("ModelReady", name="other")),
            (grpc.StatusCode.INVALID_ARGUMENT, "takes x float32", lambda: client.infer(X[:, :3].copy())),
            (grpc.StatusCode.INVALID_ARGUMENT, "no output 'z'", lambda: client.infer(outputs=[{"name": "z"}])),
        ]
        for wanted, words, call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert (caught.value.code(), words in caught.value.details()) == (wanted, True), caught.value.details()


def test_a_token_is_needed_where_tokens_are_set(store: Store) -> None:
    with Running(tokens=frozenset({"secret"})) as server:
        assert server.client.infer()[0] == 401
        assert server.client.call("/metrics")[0] == 401
        assert server.client.call("/v2/health/ready")[0] == 200
        assert Client(server.server.port, "wrong").infer()[0] == 401
        assert Client(server.server.port, "secret").infer()[0] == 200


def test_the_command_serves_until_it_is_told_to_end(store: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onward.cli", "serve", "cnn@staging", "--port", "0", "--poll", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert "cnn@staging: http://127.0.0.1:" in line, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (0, -signal.SIGTERM), errors
    assert "Traceback" not in errors


def test_observers_see_each_request_and_one_that_fails_does_no_harm(running: Running) -> None:
    seen: list[Observation] = []

    class Notes:
        def seen(self, request: Observation) -> None:
            seen.append(request)
            raise RuntimeError("a bug")

    running.server.models["cnn"].observers.append(Notes())
    before = time.time()
    assert running.client.infer()[0] == 200
    assert running.client.infer(np.zeros((2, 3)))[0] == 400
    wait_for(lambda: len(seen) == 2)
    good, bad = seen
    assert (good.model, good.target, good.version, good.outcome, good.request) == (
        "cnn", "cnn@staging", "1", "success", "7",
    )  # fmt: skip
    assert (good.entry, len(good.sha256), good.cause) == (1, 64, "live")
    assert before <= good.arrived <= time.time()
    assert good.latency_us == pytest.approx(good.queue_us + good.compute_us)
    assert good.outputs is not None
    assert np.array_equal(good.inputs["x"], good.outputs["y"])
    assert (bad.outcome, bad.outputs) == ("invalid", None)
