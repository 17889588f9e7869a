"""Models that take their state back in the next step: verified, judged and served over sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onward import InferenceSession
from onward.registry.errors import UsageError
from onward.stages import host
from onward.stages.benchmark import benchmark
from onward.stages.config import paths
from onward.stages.config.load import resolve
from onward.stages.publish import publish
from onward.stages.select import select
from tests.test_field_cases import VERIFIED, case, reasons
from tests.toy import one

__all__ = ["case"]
Go = Callable[..., dict[str, Any]]


def test_a_stream_goes_through_all_stages_and_keeps_its_state_when_served(case: Go, store_uri: str) -> None:
    reports = case("stream", "stream", *VERIFIED, "optimize", "quantize")
    host.main()
    for stage, compute in (("benchmark", benchmark), ("select", select), ("publish", publish)):
        reports[stage] = one(stage, "stream", compute)
    assert reasons(reports) == ""
    sequences = [result for result in reports["verify"].cases if result.case.startswith("sequence")]
    assert [len(steps) for steps in sequences[0].drift.values()] == [12, 12]
    measured = [variant for variant in reports["quantize"].variants if variant.snr_db is not None]
    assert all(set(variant.drift) == {"y", "next_state"} for variant in measured)
    assert {kind.output: (kind.kind, kind.samples, kind.steps) for kind in reports["verify"].kinds} == {
        "y": ("values", 0, True),
        "next_state": ("state", 1, True),
    }
    session = InferenceSession("stream/1")
    chunks = resolve("models.stream:samples")("evaluation")["chunk"][:4]
    plain = onnxruntime.InferenceSession(str(paths.build("stream", "export") / "model.onnx"))
    state = np.zeros((2, 4, 8), np.float32)
    stream = session.stream()
    for step in range(chunks.shape[1]):
        feed = {"chunk": chunks[:, step], "state": state, "rate": np.array(16000, np.float32)}
        y, state = plain.run(None, feed)
        np.testing.assert_allclose(stream.predict(chunks[:, step]), y, atol=0.1)
    assert stream.state["state"].shape == (2, 4, 8)
    with pytest.raises(UsageError, match="keeps the state 'state' itself"):
        stream.predict(chunk=chunks[:, 0], state=state)
    stream.reset()
    assert stream.state == {}
    batches = session.predict_batches(
        {"chunk": np.tile(chunks[:, 0], (5, 1)), "state": np.zeros((2, 20, 8), np.float32)}, batch_size=8
    )
    assert batches["y"].shape == (20, 3)
    assert batches["next_state"].shape == (2, 20, 8)
