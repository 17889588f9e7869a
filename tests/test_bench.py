"""The benchmark stage on a quickly trained model: what it measures and keeps, and what select chooses."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from onward.registry.evidence.records import PLAIN, CaseResult, Measurement, Ratio
from onward.registry.evidence.reports import BenchmarkReport, QuantizeReport, SelectReport, load
from onward.registry.evidence.session_options import CPU
from onward.registry.host import hardware, runtimes
from onward.stages import host
from onward.stages.benchmark import TUNED, benchmark, faster_originals
from onward.stages.config.schema import Tolerance
from onward.stages.data import data
from onward.stages.export import export
from onward.stages.measuring import race
from onward.stages.measuring.race import blank
from onward.stages.optimize import optimize
from onward.stages.parity.check import Expected, check
from onward.stages.quantize import quantize
from onward.stages.select import select
from onward.stages.train import train
from onward.stages.verify import verify
from onward.stages.workers.worker import Worker
from tests.toy import SOURCE, WIDE, many_rows, one, toy_params, write_project

BEFORE = {
    "train": train, "data": data, "export": export, "verify": verify, "optimize": optimize, "quantize": quantize,
}  # fmt: skip


def measured(**changes: object) -> tuple[BenchmarkReport, SelectReport]:
    for stage, compute in BEFORE.items():
        one(stage, "toy", compute)
    host.main()
    found = one("benchmark", "toy", benchmark)
    chosen = one("select", "toy", select)
    assert isinstance(found, BenchmarkReport)
    assert isinstance(chosen, SelectReport)
    return found, chosen


def test_the_benchmark_measures_the_best_keeps_every_call_and_records_why_others_lost(project: Path) -> None:
    write_project(project, WIDE, many_rows())
    report, chosen = measured()
    assert report.passed, report.reason
    full = [m for m in report.measurements if m.latencies]
    plain = full[0]
    assert plain.variant == PLAIN
    assert plain.ratios["all"].value == 1
    assert len(full) <= 1 + 3 + TUNED
    assert all(m.latencies or m.reason for m in report.measurements)
    assert {m.variant for m in full if m.options.to_load()} == {m.variant for m in full if m.graph}

    table = parquet.read_table(project / "build/toy/benchmark/samples.parquet").to_pydict()
    calls = Counter(zip(table["variant"], table["scenario"], table["size"], strict=True))
    assert report.reference is not None
    for m in (*full, report.reference):
        for latency in m.latencies:
            assert calls[m.variant, "single stream", latency.size] == latency.samples
            assert latency.withheld or latency.p99_ms is not None
    assert {"screening", "tuning", "single stream", "sweep", "4 callers"} <= set(table["scenario"])

    assert plain.scenarios is not None
    assert [point.sizes for point in plain.scenarios.sweep][:2] == [{"batch": 1}, {"batch": 2}]
    assert plain.scenarios.knee in [point.sizes for point in plain.scenarios.sweep]
    assert [callers.callers for callers in plain.scenarios.callers] == [1, 2, 4]
    assert plain.scenarios.cold_start_ms is not None
    assert plain.scenarios.cold_start_ms > plain.latencies[0].p50_ms

    assert [choice.variant for choice in chosen.choices] == [m.variant for m in report.measurements]
    assert [winner.runtime for winner in chosen.winners] == ["cpu"]
    winner = next(m for m in full if m.variant == chosen.variant)
    assert (chosen.winners[0].options, chosen.files) == (winner.options, winner.files)
    assert winner is plain or (winner.ratios["all"].high < 1 and winner.quality is not None)


def test_a_search_without_time_judges_one_variant_and_reports_the_cut(project: Path) -> None:
    hurry = {"search_seconds": 0.001, "race_seconds": 0.001, "torch_compile": True}
    write_project(project, WIDE, many_rows(benchmark=toy_params()["models"]["toy"]["benchmark"] | hurry))
    report, chosen = measured()
    assert report.passed, report.reason
    assert any("benchmark.search_seconds" in finding for finding in report.findings)
    assert not any(m.graph for m in report.measurements)
    assert chosen.passed
    raced = parquet.read_table(
        project / "build/toy/benchmark/samples.parquet", filters=[("scenario", "==", "single stream")]
    )
    assert set(range(3)) <= set(raced["round"].to_pylist()) <= set(range(4))

    assert report.compiled is not None
    assert report.compiled.provider == "torch.compile"
    if shutil.which("g++"):
        assert [latency.size for latency in report.compiled.latencies] == ["b1", "b16"], report.compiled.reason
    else:
        assert report.compiled.status == "failed"
        assert report.compiled.reason
    lower = report.compiled_bfloat16
    assert lower is not None
    assert lower.precision == "bfloat16"
    if not runtimes.BFLOAT16 & set(hardware.instruction_sets()):
        assert (lower.status, lower.reason) == ("not attempted", "this CPU does not compute in bfloat16")
    elif shutil.which("g++"):
        assert lower.latencies, lower.reason
        assert lower.cosine is not None


@pytest.mark.parametrize("budget", [{"min_cosine": 0.999999}, {"min_snr_db": 90.0}])
def test_int8_outside_the_budget_is_not_measured_in_full(project: Path, budget: dict[str, float]) -> None:
    write_project(project, WIDE, many_rows(quality=None, budget=budget, optimize={"candidates": []}))
    report, chosen = measured()
    made = load(QuantizeReport, project / "build/toy/quantize/report.json")
    broken = [v for v in made.variants if f"budget.{next(iter(budget))}" in v.reason]
    assert broken
    assert not [m for m in report.measurements if m.precision == "int8" and m.latencies]
    assert chosen.variant.startswith(PLAIN)


def test_lower_precision_is_measured_on_a_runtime_whose_float32_is_out_of_tolerance(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runtime is this one again, in a process that the test calls `twin`."""
    write_project(project, WIDE, many_rows(optimize={"candidates": []}, quantize={"candidates": ["dynamic"]}))
    for stage, compute in BEFORE.items():
        one(stage, "toy", compute)
    host.main()
    described = json.loads((project / "build/host/machine.json").read_text())
    described["runtimes"] = [state for state in described["runtimes"] if state["runtime"] == "cpu"]
    described["runtimes"].append(described["runtimes"][0] | {"runtime": "twin"})
    (project / "build/host/machine.json").write_text(json.dumps(described))
    twin = project / ".runtimes/twin/bin/python"
    twin.parent.mkdir(parents=True)
    twin.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    twin.chmod(0o755)
    monkeypatch.setitem(runtimes.PROVIDERS, "twin", CPU)

    def inexact(worker: Worker, expected: list[Expected], tolerance: Tolerance) -> list[CaseResult]:
        first, *rest = check(worker, expected, tolerance)
        out = "out of tolerance" if worker.label.startswith("plain on twin ") else first.verdict
        return [first.model_copy(update={"verdict": out}), *rest]

    monkeypatch.setattr(race, "check", inexact)
    report = one("benchmark", "toy", benchmark)
    assert isinstance(report, BenchmarkReport)
    assert report.passed, report.reason
    found = {m.variant: m for m in report.measurements if m.runtime == "twin"}
    assert found["plain"].status == "failed"
    assert "out of tolerance" in found["plain"].reason
    assert found["plain"].latencies
    assert any("twin: the plain export cannot be chosen" in finding for finding in report.findings)
    assert found["int8-dynamic"].ratios  # whether it is faster depends on the host
    assert found["int8-dynamic"].status != "failed"
    chosen = one("select", "toy", select)
    assert isinstance(chosen, SelectReport)
    assert PLAIN not in [winner.variant for winner in chosen.winners if winner.runtime == "twin"]


def test_the_original_runs_in_bfloat16(project: Path) -> None:
    write_project(project, SOURCE)
    weights = project / "build" / "toy" / "train" / "model.safetensors"
    one("train", "toy", train)
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    answers = {}
    for precision in ("float32", "bfloat16"):
        with Worker.torch("models.toy:net", weights, ["x"], ["y"], "toy", precision=precision) as worker:
            answers[precision] = worker.run({"x": x})["y"]
            assert worker.measure({"x": x}, 0.001, 1)
    assert {answer.dtype for answer in answers.values()} == {np.dtype(np.float32)}
    off = np.abs(answers["bfloat16"] - answers["float32"]).max()
    assert 0 < off < 0.05


def test_an_original_that_beats_every_variant_is_reported() -> None:
    def timed(name: str, value: float, **more: Any) -> Measurement:
        found = Ratio(value=value, low=value * 0.99, high=value * 1.01)
        return blank(name, "cpu", CPU, "float32", ratios={"all": found}, host_ratios={"all": found}, **more)

    variants = [timed("plain", 1.0), timed("fast", 0.5)]
    originals = [timed("reference", 0.6), timed("torch.compile", 0.499), timed("lower", 0.25, cosine=0.9999)]
    assert list(faster_originals(originals, variants)) == [
        "lower (worst cosine 0.99990) is 2.00 times as fast as the fastest acceptable ONNX variant, fast on cpu "
        "(95 % interval 1.97 to 2.03)"
    ]
    assert list(faster_originals(originals, [])) == []
