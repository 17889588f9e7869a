"""The answers of a candidate are judged by the kind of each output, over all compared requests."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onward.registry.artifact.replay import BUNDLE, Recorded
from onward.registry.evidence.records import OutputKind
from onward.registry.serve.agreement import Judge, Pair, agreement
from onward.registry.serve.shadow import Tally

RNG = np.random.default_rng(0)
SCORES = OutputKind(output="y", kind="scores", axis=1)


def judge(tmp_path: Path, *kinds: OutputKind, precision: str = "float32", axis: int | None = 0) -> Judge:
    (tmp_path / BUNDLE).mkdir(exist_ok=True)
    Recorded(kinds=list(kinds), agreement={"float16": 0.99, "int8": 0.9}).save(tmp_path)
    loaded: Any = SimpleNamespace(
        path=tmp_path / "model.onnx", sample_axes={"x": 0, "y": axis}, evidence={"precision": precision}
    )
    return Judge(loaded)


def requests(changed: int, of: int = 100, rows: int = 2) -> list[Pair]:
    """Requests with scores of three classes, `changed` of which have another answer for each sample."""
    found: list[Pair] = []
    for number in range(of):
        wanted = RNG.standard_normal((rows, 3)).astype(np.float32) * 3
        got = wanted[:, [1, 2, 0]] if number < changed else wanted + np.float32(1e-4)
        found.append(({"y": wanted}, {"y": got}))
    return found


@pytest.mark.parametrize(
    ("changed", "precision", "holds"),
    [(3, "float32", True), (30, "float32", False), (9, "int8", True), (3, "float16", False), (0, "float16", True)],
)
def test_the_share_of_changed_answers_decides_for_scores(
    tmp_path: Path, changed: int, precision: str, holds: bool
) -> None:
    found = judge(tmp_path, SCORES, precision=precision).judge(requests(changed))
    assert (found[0].measure, found[0].holds) == ("share of changed answers", holds)
    assert found[0].value == pytest.approx(changed / 100, abs=0.01)
    assert agreement(found) == pytest.approx(1 - changed / 100, abs=0.01)


def test_an_output_without_a_recorded_kind_is_judged_as_values(tmp_path: Path) -> None:
    judged = judge(tmp_path)
    same, doubled = [], []
    for _ in range(50):
        wanted = RNG.standard_normal((1, 4)).astype(np.float32)
        same.append(({"y": wanted}, {"y": wanted + np.float32(1e-6)}))
        doubled.append(({"y": wanted}, {"y": 2 * wanted}))
    assert all(one.holds for one in judged.judge(same))
    assert agreement(judged.judge(same)) > 0.999
    assert not any(one.holds for one in judged.judge(doubled))
    numbers = [({"y": np.arange(4)}, {"y": np.arange(4)}) for _ in range(5)]
    assert agreement(judged.judge(numbers)) == 1.0


def test_requests_of_different_shapes_are_judged_together(tmp_path: Path) -> None:
    pairs = []
    for number in range(200):
        wanted = RNG.standard_normal((1, 4 + number % 2, 3)).astype(np.float32) * 3
        pairs.append(({"y": wanted}, {"y": wanted[:, :, [1, 2, 0]] if number % 4 == 1 else wanted}))
    found = judge(tmp_path, OutputKind(output="y", kind="scores", axis=2)).judge(pairs)
    assert found[0].value == pytest.approx(0.25, abs=0.01)  # half of the longer ones
    assert (found[0].holds, found[0].reason) == (False, "2 shapes")


def test_samples_on_another_axis_are_moved_to_the_front(tmp_path: Path) -> None:
    moved = [({"y": wanted["y"].T}, {"y": got["y"].T}) for wanted, got in requests(20)]
    kind = SCORES.model_copy(update={"samples": 1})
    assert judge(tmp_path, kind, axis=1).judge(moved)[0].value == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("got", [{}, {"y": np.zeros((2, 5), np.float32)}, {"y": np.full((2, 3), np.nan, np.float32)}])
def test_a_missing_or_broken_output_is_no_agreement(tmp_path: Path, got: Any) -> None:
    pairs = [*requests(0, 10), ({"y": np.ones((2, 3), np.float32)}, got)]
    found = judge(tmp_path, SCORES).judge(pairs)
    assert not found[0].holds
    assert agreement(found) == 0.0


def test_a_tally_keeps_a_bounded_sample_of_all_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    from onward.registry.serve import shadow

    monkeypatch.setattr(shadow, "_KEPT", 50)
    loaded: Any = None
    tally = Tally(loaded, loaded)
    for number in range(2000):
        output = {"y": np.full((1, 1), number, np.float32)}
        tally.add(output, output, 1.0)
    kept = sorted(float(wanted["y"][0, 0]) for wanted, _ in tally.pairs)
    assert (tally.requests, len(kept)) == (2000, 50)
    assert kept[0] < 500  # early and late requests
    assert kept[-1] > 1500
