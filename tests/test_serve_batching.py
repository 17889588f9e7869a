"""Requests that are joined to one run: each gets its own answer or error, within the delay and the batch size."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onward.registry import processors
from onward.registry.errors import MachineFault
from onward.registry.evidence.records import Measurement, Scenarios, SweepPoint
from onward.registry.inference.session import InferenceSession
from onward.registry.serve import engine, versions
from onward.registry.serve.access import Access
from onward.registry.serve.batching import Batching, key_of
from onward.registry.serve.engine import Answer
from onward.registry.serve.limits import Limits
from onward.registry.serve.metrics import Metrics
from onward.registry.serve.observer import Observation
from onward.registry.serve.protocol import Fault, Request
from onward.registry.serve.served import ServedModel, Sizes
from onward.registry.tracking.metrics import best_batch
from tests.store_factory import scale_model
from tests.test_serve import Grpc, Running, wait_for

Make = Callable[..., ServedModel]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of each run of a model."""
    found: list[int] = []
    real = engine.compute

    def compute(loaded: Any, feed: Any) -> Any:
        found.append(len(next(iter(feed.values()))))
        return real(loaded, feed)

    monkeypatch.setattr(engine, "compute", compute)
    return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Make]:
    """Makes served models of y = 2 x, which join requests."""
    made: list[ServedModel] = []

    def make(delay_ms: float = 200.0, most: int | None = 8, workers: int | None = 1, queue: int = 64) -> ServedModel:
        session = InferenceSession(scale_model(tmp_path / "scale.onnx", 2.0))
        sizes = Sizes(Batching(queue, delay_ms / 1000, most), workers)
        made.append(ServedModel("scale.onnx", "scale", session, Metrics(), sizes))
        made[-1].start()
        return made[-1]

    yield make
    for model in made:
        model.close()


def ask(model: ServedModel, *inputs: Any, seconds: float = 60.0) -> list[Answer | Fault]:
    """The answers or errors of requests that are sent at the same time."""

    async def all_of() -> list[Any]:
        requests = (model.infer(one if isinstance(one, dict) else {"x": one}, seconds=seconds) for one in inputs)
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(all_of())


def rows(count: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    return (np.arange(4 * count, dtype=np.float32) + start).reshape(count, 4)


def total(model: ServedModel, name: str) -> float:
    return sum(model._metrics.counters[name].values())


def check(answers: list[Answer | Fault], inputs: list[np.ndarray[Any, Any]]) -> None:
    for answer, given in zip(answers, inputs, strict=True):
        assert isinstance(answer, Answer), answer
        assert np.array_equal(answer.outputs["y"], 2 * given)


def test_requests_are_joined_and_each_gets_its_own_rows(serve: Make, runs: list[int]) -> None:
    model = serve()
    inputs = [rows(count, 100 * count) for count in (1, 3, 2, 2)]
    check(ask(model, *inputs), inputs)
    assert runs == [8]  # the batch was full, so nobody waited for the end of the delay
    assert (total(model, "nv_inference_exec_count"), total(model, "nv_inference_count")) == (1, 8)
    assert total(model, "nv_inference_request_success") == 4
    page = model._metrics.page().decode()
    assert (
        f'onward_batch_size_bucket{{le="8.0",model="scale",version="{versions.version_of(model.session.loaded)}"}} 1.0'
        in page
    )
    assert "onward_batch_size_sum" in page


def test_a_batch_is_never_larger_than_allowed(serve: Make, runs: list[int]) -> None:
    model = serve(delay_ms=50, most=4)
    inputs = [rows(3), rows(2), rows(1), rows(6)]
    check(ask(model, *inputs), inputs)
    assert sorted(runs) == [2, 4, 6]  # a request that is larger by itself is not cut


def test_without_a_delay_nothing_is_joined(serve: Make, runs: list[int]) -> None:
    model = serve(delay_ms=0)
    inputs = [rows(1), rows(2), rows(3)]
    check(ask(model, *inputs), inputs)
    assert sorted(runs) == [1, 2, 3]


def test_a_bad_request_gets_its_own_error_and_spoils_no_other(serve: Make, runs: list[int]) -> None:
    model = serve(delay_ms=50)
    wrong = rows(2).astype(np.complex64)
    good, bad, missing, also = ask(model, rows(1), wrong, {"z": rows(1)}, rows(2))
    check([good, also], [rows(1), rows(2)])
    assert isinstance(bad, Fault)
    assert (bad.status, "input x" in bad.message) == (400, True)
    assert isinstance(missing, Fault)
    assert "no input z" in missing.message
    assert runs == [3]


def test_a_value_out_of_range_fails_alone_inside_a_batch(tmp_path: Path, serve: Make, runs: list[int]) -> None:
    file = scale_model(tmp_path / "scale.onnx", 2.0)
    proto = onnx.load(file)
    helper.set_model_props(proto, {"onward.inputs": '{"x": {"range": [0, 10]}}'})
    onnx.save(proto, tmp_path / "limited.onnx")
    model = ServedModel(
        "limited.onnx", "limited", InferenceSession(tmp_path / "limited.onnx"), Metrics(), Sizes(Batching(9, 0.2, 3), 1)
    )
    model.start()
    fine, bad, also = ask(model, rows(1), rows(1, 50.0), rows(1, 1.0))
    check([fine, also], [rows(1), rows(1, 1.0)])
    assert isinstance(bad, Fault)
    assert "documents 0 to 10" in bad.message
    assert runs == [2]
    model.close()


def test_if_the_joined_run_fails_each_request_runs_alone(serve: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, real = serve(delay_ms=50), engine.compute

    def fails_on_nines(loaded: Any, feed: Any) -> Any:
        if (feed["x"] == 9).any():
            raise MachineFault("nine")
        return real(loaded, feed)

    monkeypatch.setattr(engine, "compute", fails_on_nines)
    good, bad = ask(model, rows(1), np.full((1, 4), 9, np.float32))
    check([good], [rows(1)])
    assert isinstance(bad, Fault)
    assert (bad.status, bad.message) == (500, "nine")


def test_a_defect_of_the_server_is_an_error_and_not_a_hanging_request(
    serve: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(delay_ms=20)

    def defect(*_: Any) -> Any:
        raise RuntimeError("defect")

    monkeypatch.setattr(engine, "compute", defect)
    for found in ask(model, rows(1), rows(1)):
        assert isinstance(found, Fault)
        assert found.status == 500
    monkeypatch.undo()
    check(ask(model, rows(1)), [rows(1)])


def test_only_requests_that_agree_in_everything_but_samples_have_the_same_key() -> None:
    axes = {"x": 0, "state": 1, "rate": None}
    x, state, rate = np.zeros((2, 4)), np.zeros((3, 2, 5)), np.array(16000)

    def key(**changes: Any) -> Any:
        found = key_of(axes, {"x": x, "state": state, "rate": rate} | changes)
        return found and found[0]

    assert key() == key(x=np.ones((7, 4)), state=np.ones((3, 7, 5)))
    assert key_of(axes, {"x": x, "state": state, "rate": rate}) == (key(), 2)
    for changes in (
        {"x": np.zeros((2, 5))},
        {"x": np.zeros((2, 4), np.float32)},
        {"rate": np.array(8000)},
    ):
        assert key(**changes) not in (None, key())
    for changes in (
        {"x": np.zeros((3, 4))},  # another number of samples than `state`
        {"x": np.zeros((0, 4)), "state": np.zeros((3, 0, 5))},
        {"x": np.zeros(())},
        {"rate": np.zeros(1000)},  # too large to compare
        {"unknown": x},
    ):
        assert key(**changes) is None
    assert key_of({"x": None}, {"x": np.zeros(2)}) is None


def pairwise(path: Path, fixed: bool = False) -> Path:
    """A model of all similarities [batch, batch], or one with a fixed batch of 2."""
    out: list[Any] = [2, 4] if fixed else ["batch", "batch"]
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    if not fixed:
        nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2 if fixed else "batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_model_whose_answers_depend_on_the_whole_batch_is_never_joined(tmp_path: Path, runs: list[int]) -> None:
    for fixed in (False, True):
        session = InferenceSession(pairwise(tmp_path / "pairs.onnx", fixed))
        model = ServedModel("pairs.onnx", "pairs", session, Metrics(), Sizes(Batching(9, 0.05, 8), 1))
        model.start()
        runs.clear()
        answers = ask(model, rows(2), rows(2, 5))
        assert [one.outputs["y"].shape for one in answers if isinstance(one, Answer)] == [(2, 4 if fixed else 2)] * 2
        assert runs == [2, 2]
        model.close()


def test_a_documented_largest_batch_and_the_batch_sweep_limit_joined_requests(tmp_path: Path) -> None:
    file = scale_model(tmp_path / "scale.onnx", 2.0)
    loaded = InferenceSession(file).loaded
    assert versions.largest_batch(loaded, None) == versions.DEFAULT_BATCH
    loaded.evidence = {"best_batch": "16"}
    assert versions.largest_batch(loaded, None) == 16
    assert versions.largest_batch(loaded, 4) == 4
    proto = onnx.load(file)
    sizes = {"onward.inputs": '{"x": {"shape": ["batch", 4]}}', "onward.dims": '{"batch": {"min": 1, "max": 6}}'}
    helper.set_model_props(proto, sizes)
    onnx.save(proto, tmp_path / "limited.onnx")
    assert versions.largest_batch(InferenceSession(tmp_path / "limited.onnx").loaded, None) == 6


def test_the_batch_sweep_names_the_best_batch_of_a_version() -> None:
    points = [SweepPoint(sizes={"batch": n}, p50_ms=1, throughput=t) for n, t in ((1, 10), (2, 30), (4, 29))]
    measured = Measurement(
        variant="plain", runtime="cpu", provider="CPUExecutionProvider", precision="float32", status="passed"
    )
    for scenarios, wanted in (
        (None, None),
        (Scenarios(), None),
        (Scenarios(sweep=points), 2),
        (Scenarios(sweep=points, knee={"batch": 1}), 1),
    ):
        assert best_batch(measured.model_copy(update={"scenarios": scenarios})) == wanted


def test_a_single_caller_soon_stops_waiting_for_others(serve: Make) -> None:
    model = serve(delay_ms=80)
    begun = time.perf_counter()
    for _ in range(40):
        check(ask(model, rows(1)), [rows(1)])
    assert time.perf_counter() - begun < 40 * 0.08 / 4


def test_callers_that_wait_for_their_answers_do_not_wait_for_the_end_of_the_delay(serve: Make, runs: list[int]) -> None:
    model = serve(delay_ms=200)

    async def caller(number: int) -> None:
        for turn in range(24):
            given = rows(1, 10 * number + turn)
            check([await model.infer({"x": given})], [given])

    async def three() -> None:
        await asyncio.gather(*map(caller, range(3)))

    begun = time.perf_counter()
    asyncio.run(three())
    assert time.perf_counter() - begun < 24 * 0.2 / 3
    assert runs.count(3) > len(runs) / 2


def test_a_request_waits_no_longer_than_the_delay(serve: Make) -> None:
    model = serve(delay_ms=150)
    seen: list[Observation] = []

    class Notes:
        def seen(self, request: Observation) -> None:
            seen.append(request)

    model.observers.append(Notes())

    async def slowly() -> None:
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(model.infer({"x": rows(1, number)})))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)

    asyncio.run(slowly())
    model.close()
    assert max(one.queue_us for one in seen) < 400e3  # 150 ms, and the noise of a busy machine


def test_a_request_that_nobody_waits_for_is_not_computed(
    serve: Make, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(delay_ms=0)
    begun, go_on, counting = threading.Event(), threading.Event(), engine.compute

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return counting(*arguments)

    monkeypatch.setattr(engine, "compute", slow)
    access = Access({"scale": model}, Limits(), frozenset())

    async def two() -> None:
        first = asyncio.create_task(model.infer({"x": rows(1)}))
        await asyncio.to_thread(begun.wait, 60)
        with pytest.raises(Fault, match=r"did not answer within 0\.1 s"):
            await access.answer(model, Request({"x": rows(2)}, parameters={"timeout": 100_000}), "")
        cancelled = asyncio.create_task(model.infer({"x": rows(3)}))
        await asyncio.sleep(0.05)
        assert model._metrics.page().decode().count("onward_queued_requests{") == 1
        assert model._engine.batcher.pending == 2
        cancelled.cancel()
        await asyncio.sleep(0.05)
        assert model._engine.batcher.pending == 1
        go_on.set()
        await first

    asyncio.run(two())
    assert runs == [1]
    assert total(model, "nv_inference_request_failure") == 2


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_request_whose_caller_leaves_is_removed_from_the_queue(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    begun, go_on, counting = threading.Event(), threading.Event(), engine.compute

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return counting(*arguments)

    file = scale_model(tmp_path / "cnn.onnx", 1.0)
    with Running(str(file), grpc_port=0, workers=1) as server:
        monkeypatch.setattr(engine, "compute", slow)
        model = server.server.models["cnn"]
        first = threading.Thread(target=server.client.infer)
        first.start()
        assert begun.wait(60)
        if protocol == "grpc":
            with pytest.raises(grpc.RpcError) as caught:
                Grpc(server.server.grpc_port).infer(timeout=0.5)
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}'
            head = f"POST /v2/models/cnn/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            with socket.create_connection(("127.0.0.1", server.server.port)) as connection:
                connection.sendall(head + body)
                wait_for(lambda: model._engine.batcher.pending == 2)
        wait_for(lambda: model._engine.batcher.pending == 1)
        go_on.set()
        first.join()
    assert runs == [2]


def test_calls_over_grpc_beyond_the_queue_are_refused_at_once_and_health_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, counting = threading.Event(), engine.compute

    def slow(*arguments: Any) -> Any:
        assert go_on.wait(60)
        return counting(*arguments)

    found: list[str] = []

    def call(client: Grpc) -> None:
        try:
            found.append(client.infer().model_version)
        except grpc.RpcError as error:
            found.append(f"{error.code().name}: {error.details()}")

    file = scale_model(tmp_path / "cnn.onnx", 1.0)
    with Running(str(file), grpc_port=0, workers=1, queue=2) as server:
        monkeypatch.setattr(engine, "compute", slow)
        client = Grpc(server.server.grpc_port)
        callers = [threading.Thread(target=call, args=(client,)) for _ in range(12)]
        for caller in callers:
            caller.start()
        wait_for(lambda: len(found) == 9)
        assert client("ServerReady").ready
        go_on.set()
        for caller in callers:
            caller.join()
        version = versions.version_of(server.server.models["cnn"].session.loaded)
    assert found == ["UNAVAILABLE: cnn has 3 requests already: try again later"] * 9 + [version] * 3


def test_threads_follow_the_number_of_workers(serve: Make) -> None:
    model = serve(workers=3)
    batcher = model._engine.batcher
    for workers in (1, 4, 2):
        batcher.resize(workers)
        end = time.monotonic() + 30
        while len(batcher._threads) != workers and time.monotonic() < end:
            time.sleep(0.01)
        assert len([thread for thread in batcher._threads if thread.is_alive()]) == workers
    check(ask(model, rows(1), rows(2)), [rows(1), rows(2)])


@pytest.mark.parametrize(("quota", "threads", "workers"), [(4, 1, 4), (4, 2, 2), (2, 4, 1), (6, 4, 1), (3, None, 1)])
def test_runs_at_the_same_time_fit_into_the_quota_of_the_container(
    monkeypatch: pytest.MonkeyPatch, quota: int, threads: int | None, workers: int
) -> None:
    from types import SimpleNamespace

    from onward.registry.evidence.session_options import SessionOptions

    monkeypatch.setattr(processors, "count", lambda: quota)
    monkeypatch.setattr(processors, "fewer", lambda: quota)
    monkeypatch.setattr(processors, "usable", lambda: set(range(1, 65)))
    fitted = SessionOptions(threads=threads).fitting_here()
    assert fitted.threads is None or fitted.threads <= quota
    loaded: Any = SimpleNamespace(metadata=lambda: SimpleNamespace(served=SimpleNamespace(options=fitted)))
    assert versions.workers_for(loaded) == workers
    assert workers * (fitted.threads or quota) <= quota
