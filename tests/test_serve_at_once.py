"""Short runs are computed in the thread of the event loop; others by the threads of the model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.registry.serve import engine
from onward.registry.store.store import Store
from tests.store_factory import three_candidates
from tests.test_serve import Grpc, Running, wait_for


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return three_candidates(tmp_path, monkeypatch)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that ran the model, in order. The first run of each test counts as short."""
    found: list[str] = []
    real = engine.compute

    def watched(*arguments: Any) -> Any:
        found.append(threading.current_thread().name)
        return real(*arguments)

    monkeypatch.setattr(engine, "compute", watched)
    monkeypatch.setattr(engine, "AT_ONCE_S", 10.0)
    return found


def by_the_model(name: str) -> bool:
    return name.startswith("onward-cnn-")


def test_a_request_like_one_with_a_short_run_needs_no_other_thread(store: Store, threads: list[str]) -> None:
    with Running() as server:
        client = server.client
        for values in (np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((1, 4)), np.zeros((9, 4)), np.zeros((9, 4))):
            assert client.infer(values)[0] == 200
        # The first one, and the first of a larger size, are timed by the model's threads.
        assert [by_the_model(name) for name in threads] == [True, False, False, True, False]
        status, body = client.infer(np.zeros((2, 3)))
        assert (status, "the model takes x float32" in body["error"]) == (400, True)
        assert client.infer(path="/v2/models/cnn/versions/9/infer")[0] == 404
        text = client.call("/metrics")[1].decode()
        assert 'nv_inference_request_success{model="cnn",version="1"} 5.0' in text
        assert 'onward_queued_requests{model="cnn",version="1"} 0.0' in text


def test_grpc_takes_the_same_way(store: Store, threads: list[str]) -> None:
    with Running(grpc_port=0) as server:
        client = Grpc(server.server.grpc_port)
        assert [client.infer().model_version for _ in range(3)] == ["1"] * 3
        assert [by_the_model(name) for name in threads] == [True, False, False]


def test_a_long_run_is_left_to_the_models_threads(
    store: Store, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running() as server:
        server.client.infer()
        monkeypatch.setattr(engine, "AT_ONCE_S", 0.0)
        server.client.infer()
        server.client.infer()
        assert [by_the_model(name) for name in threads] == [True, False, True]


def test_a_request_behind_others_waits_in_the_queue(
    store: Store, threads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    with Running(workers=1) as server:
        server.client.infer()
        monkeypatch.setattr(engine, "AT_ONCE_S", 0.0)
        server.client.infer()
        monkeypatch.setattr(engine, "AT_ONCE_S", 10.0)
        real = engine.compute

        def slow(*arguments: Any) -> Any:
            begun.set()
            assert go_on.wait(60)
            return real(*arguments)

        monkeypatch.setattr(engine, "compute", slow)
        answers: list[Any] = []
        clients = [threading.Thread(target=lambda: answers.append(server.client.infer())) for _ in range(2)]
        clients[0].start()
        assert begun.wait(60)
        clients[1].start()
        model = server.server.models["cnn"]
        wait_for(lambda: model._engine.batcher.pending == 2)
        go_on.set()
        for client in clients:
            client.join()
        assert [status for status, _ in answers] == [200, 200]


def test_another_version_is_timed_anew(store: Store, threads: list[str]) -> None:
    from tests.store_factory import stage

    with Running() as server:
        for _ in range(2):
            server.client.infer()
        stage(store, 2)
        wait_for(lambda: server.client.call("/v2/models/cnn")[1]["versions"] == ["2"])
        before = len(threads)
        for _ in range(2):
            assert server.client.infer()[1]["model_version"] == "2"
        assert [by_the_model(name) for name in threads[before:]] == [True, False]
