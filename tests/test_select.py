"""The choice among variants at its limits, and the report of the select stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onward.registry.evidence.records import Choice, FileDigest, Measurement, OutputFidelity, OutputKind, Ratio
from onward.registry.evidence.reports import BenchmarkReport, SelectReport, VerifyReport, save
from onward.registry.evidence.session_options import SessionOptions
from onward.stages.config.schema import Budget
from onward.stages.parity.budget import Judgement
from onward.stages.select import _winner, choose, pareto, select
from tests.test_choice import PLAIN, REFERENCE, chosen, measured
from tests.toy import write_project, write_settings


def of_size(*sizes: int) -> list[FileDigest]:
    return [FileDigest(path=f"{n}.onnx", sha256="0" * 64, size_bytes=size) for n, size in enumerate(sizes)]


def between(name: str, low: float, value: float, high: float, **changes: Any) -> Measurement:
    found = Ratio(value=value, low=low, high=high)
    return measured(name, value, ratios={"b1": found, "all": found}, **changes)


def choices(*variants: Measurement, budget: Budget | None = None, quality: float | None = 0.9) -> dict[str, Choice]:
    found = choose(list(variants), Judgement(quality, budget or Budget()))
    assert [choice.variant for choice in found] == [m.variant for m in variants]
    return {choice.variant: choice for choice in found}


def test_a_gain_counts_only_if_its_whole_interval_is_below_the_threshold() -> None:
    assert chosen(between("a", 0.9, 0.95, 0.979)) == "a"
    assert chosen(between("a", 0.9, 0.95, 0.98)) == "plain"
    assert chosen(between("a", 0.9, 0.95, 0.981)) == "plain"


def test_a_size_is_slower_only_if_its_whole_interval_is_above_one() -> None:
    for low, wanted in ((0.99, "a"), (1.0, "a"), (1.0001, "plain")):
        mixed = between("a", 0.7, 0.8, 0.9)
        mixed.ratios["b32"] = Ratio(value=1.05, low=low, high=1.1)
        assert chosen(mixed) == wanted


def test_within_one_percent_the_smaller_loss_wins_and_beyond_it_the_faster_variant() -> None:
    fast = measured("fast", 0.5, quality=0.896)
    assert chosen(fast, measured("exact", 0.505)) == "exact"
    assert chosen(fast, measured("exact", 0.5051)) == "fast"
    assert chosen(fast, measured("better", 0.504, quality=0.91), measured("exact", 0.504)) == "better"


def test_with_equal_loss_the_simpler_variant_wins_then_the_smaller() -> None:
    tuned = measured("tuned", 0.5, options=SessionOptions(threads=1), files=of_size(1))
    large, small = measured("large", 0.502, files=of_size(5, 5)), measured("small", 0.504, files=of_size(3, 6))
    assert chosen(tuned, large) == "large"
    assert chosen(tuned, large, small) == "small"
    assert chosen(small, large, tuned) == "small"


def test_only_fully_measured_variants_can_win_or_be_on_the_front() -> None:
    screened = measured("a", 0.2, latencies=[])
    found = choices(PLAIN, screened)
    assert found["plain"].chosen
    assert not found["a"].on_front
    alone = choices(measured("a", 0.8), measured("b", 0.9))
    assert (alone["a"].chosen, alone["b"].chosen) == (True, False)
    neither = choices(measured("a", 0.99), measured("b", 0.99))
    assert not any(choice.chosen for choice in neither.values())


def test_the_reason_of_a_choice_states_the_worst_size() -> None:
    mixed = measured("a", 0.5)
    mixed.ratios = {"b1": mixed.ratios["all"], "b32": Ratio(value=0.8, low=0.79, high=0.81), **mixed.ratios}
    first = mixed.latencies[0]
    mixed.latencies = [first.model_copy(update={"weight": 3.0}), first.model_copy(update={"p50_ms": 16 * first.p50_ms})]
    found = choices(PLAIN, mixed)["a"]
    assert found.reason.endswith("; at worst 1.25 times, at b32")
    assert (found.worst_size, found.worst) == ("b32", mixed.ratios["b32"])
    assert _winner(mixed).p50_ms == pytest.approx(2 * first.p50_ms)


def test_the_front_contains_variants_not_dominated_in_latency_loss_and_size() -> None:
    base = measured("base", 0.5, files=of_size(5))
    drops = {"base": 0.5, "same": 0.5, "faster": 0.5, "lossy": 0.6, "smaller": 0.5, "worse": 0.6, "exact": None}
    field = [
        base, measured("same", 0.5, files=of_size(5)), measured("faster", 0.4, files=of_size(6)),
        measured("lossy", 0.5, files=of_size(5)), measured("smaller", 0.6, files=of_size(4)),
        measured("worse", 0.6, files=of_size(6)), measured("exact", 0.7, files=of_size(9)),
    ]  # fmt: skip
    assert [m.variant for m in pareto(field, drops)] == ["base", "same", "faster", "smaller", "exact"]
    assert [m.variant for m in pareto(field[:1], drops)] == ["base"]
    found = choices(PLAIN, measured("a", 0.8), measured("b", 0.9))
    assert {name for name, choice in found.items() if choice.on_front} == {"a"}


def test_a_choice_reports_its_loss_and_the_allowed_loss() -> None:
    found = choices(PLAIN, measured("a", 0.8, quality=0.898), measured("int8", 0.9, quality=None, precision="int8"))
    assert found["a"].quality_drop == pytest.approx(0.002)
    assert (found["a"].quality_measure, found["a"].quality_budget) == ("quality", Budget().quality_drop)
    assert found["a"].ratio == Ratio(value=0.8, low=0.79, high=0.81)
    assert (found["int8"].quality_drop, found["int8"].quality_budget) == (None, None)
    assert "could not be measured" in found["int8"].reason
    assert found["a"].runtime == "cpu"


def test_losses_by_different_measures_are_compared_relative_to_their_limits() -> None:
    def int8(name: str, value: float, lost: float) -> Measurement:
        said = OutputFidelity(
            output="y", kind="scores", measure="answers", value=lost, low=lost, high=lost, limit=0.1, holds=True
        )
        return measured(name, value, quality=None, precision="int8", fidelity=[said])

    judgement = Judgement(None, Budget(), [OutputKind(output="y", kind="scores")])
    found = {c.variant: c for c in choose([PLAIN, int8("a", 0.5, 0.09), int8("b", 0.504, 0.01)], judgement)}
    assert found["b"].chosen
    assert (found["a"].quality_drop, found["a"].quality_budget) == (0.09, 0.1)


def test_without_a_measured_loss_the_smallest_of_equally_fast_variants_wins() -> None:
    large, small = (
        measured(name, value, quality=None, precision="int8", files=of_size(size))
        for name, value, size in (("large", 0.5, 9), ("small", 0.504, 8))
    )
    exact = measured("exact", 0.503, quality=None, files=of_size(10))
    found = choices(PLAIN, large, small, exact, quality=None)
    assert found["small"].chosen
    assert (found["small"].quality_drop, found["exact"].quality_drop) == (None, 0.0)
    assert found["large"].reason == "as fast as small (2.00 times), which is simpler or smaller"
    assert {name for name, choice in found.items() if choice.on_front} == {"large", "small"}


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (measured("a", 0.5, quality=0.5), "quality drops by 0.4"),
        (measured("a", 0.5, status="failed", reason="differs by 3", quality=0.5), "differs by 3"),
        (between("a", 1.01, 1.2, 1.3), "slower than the plain export: 1.20 times its latency (95 % interval"),
        (between("a", 1.0, 1.2, 1.3), "not provably faster than the plain export: 1.20 times its latency"),
        (between("a", 0.9, 0.95, 0.98), "not provably faster than the plain export: 0.95 times"),
        (measured("a", 0.504, files=of_size(2_000_000)), "as fast as best (1.98 times), which is simpler or smaller"),
        (measured("a", 0.504, quality=0.896), "as fast as best (1.98 times), which loses less quality"),
        (measured("a", 0.505), "as fast as best"),
        (measured("a", 0.506), "tied with best, which was faster in this run: 1.98 times as fast as the plain export"),
        (measured("a", 0.53), "faster than the plain export (1.89 times), but best is faster still"),
    ],
)
def test_every_rejected_variant_has_a_reason(variant: Measurement, reason: str) -> None:
    found = choices(PLAIN, measured("best", 0.5), variant)
    assert found["best"].chosen
    assert found["best"].reason.startswith("the fastest within the budget: 2.00 times as fast as the plain export (95")
    assert found["plain"].reason == "best is provably faster"
    assert found["a"].reason.startswith(reason)


def test_variants_with_overlapping_intervals_are_tied() -> None:
    found = choices(
        PLAIN, measured("best", 0.5), measured("near", 0.515), measured("far", 0.53), measured("bad", 0.51, quality=0.5)
    )
    assert {name for name, choice in found.items() if choice.tied} == {"near"}
    found = choices(PLAIN, between("noisy", 0.9, 0.97, 1.1), between("slower", 1.01, 1.05, 1.1))
    assert {name for name, choice in found.items() if choice.tied} == {"noisy"}
    assert found["plain"].chosen


def test_the_reason_names_the_size_at_which_a_variant_is_slower() -> None:
    mixed = between("a", 0.7, 0.8, 0.9)
    mixed.ratios["b32"] = Ratio(value=1.2, low=1.1, high=1.3)
    found = choices(PLAIN, mixed)
    assert found["a"].reason == "slower than the plain export at b32 (1.20 times its latency)"
    assert found["plain"].reason == "no variant within the budget is provably faster"


@pytest.fixture
def benchmark(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the reports of the stages before select for the model `toy`."""
    model = {"build": "models.toy:net", "samples": "models.toy:samples", "quality": "models.toy:accuracy",
             "inputs": {"x": {"shape": ["batch", 6]}}, "outputs": {"y": {"shape": ["batch", 3]}},
             "dims": {"batch": {"max": 16, "typical": [1, 4]}}, "budget": {"size_mb": 1.5}}  # fmt: skip
    write_project(project, params={"models": {"toy": model}})
    write_settings()
    save(VerifyReport(model="toy", status="passed"), project / "build" / "toy" / "verify" / "report.json")

    def write(*measurements: Measurement, **changes: Any) -> SelectReport:
        said = {"status": "passed", "reference": REFERENCE, "measurements": list(measurements), **changes}
        report = BenchmarkReport(model="toy", **said)
        save(report, project / "build" / "toy" / "benchmark" / "report.json")
        return select("toy", project / "build" / "toy" / "select")

    return write


def on(runtime: str, *variants: Measurement) -> list[Measurement]:
    return [m.model_copy(update={"runtime": runtime, "provider": f"{runtime}-provider"}) for m in variants]


def test_each_runtime_has_a_winner_and_the_first_runtime_determines_the_model(benchmark: Any) -> None:
    latencies = [measured("x", ms).latencies[0] for ms in (2.0, 8.0)]
    fast = measured("fast", 0.5, quality=0.898, latencies=latencies, options=SessionOptions(threads=1))
    report = benchmark(*on("cpu", PLAIN, fast), *on("openvino", PLAIN, measured("other", 0.99)))
    assert (report.status, report.model, report.reason) == ("passed", "toy", "")
    assert [(won.variant, won.runtime, won.provider) for won in report.winners] == [
        ("fast", "cpu", "cpu-provider"), ("plain", "openvino", "openvino-provider"),
    ]  # fmt: skip
    won = report.winners[0]
    assert won.p50_ms == pytest.approx(4.0)  # the geometric mean over sizes
    assert (won.files, won.options) == (fast.files, SessionOptions(threads=1))
    assert report.winners[1].options == SessionOptions()
    assert (report.variant, report.runtime, report.files) == ("fast", "cpu", fast.files)
    assert (report.quality_measure, report.quality_budget) == ("quality", Budget().quality_drop)
    assert [(c.variant, c.runtime, c.chosen) for c in report.choices] == [
        ("plain", "cpu", False), ("fast", "cpu", True), ("plain", "openvino", True), ("other", "openvino", False),
    ]  # fmt: skip


def test_an_unmet_budget_fails_and_names_the_limit_the_plain_export_exceeds(benchmark: Any) -> None:
    died = measured("a", 0.5, status="failed", reason="died")
    report = benchmark(died, PLAIN.model_copy(update={"files": of_size(2_000_000)}))
    assert (report.status, report.winners, report.variant) == ("failed", [], "")
    assert report.reason.startswith("no variant is within the budget; the plain export: 2.00 MB is more than the 1.5")
    assert (report.quality_measure, report.quality_budget) == ("", None)


def test_a_runtime_without_acceptable_variants_has_no_winner_and_the_next_is_used(benchmark: Any) -> None:
    report = benchmark(*on("cpu", measured("plain", status="failed", reason="died")), *on("openvino", PLAIN))
    assert (report.status, report.variant, report.runtime) == ("passed", "plain", "openvino")
    assert report.choices[0].reason == "died"


def test_without_measurements_nothing_is_attempted(benchmark: Any) -> None:
    report = benchmark(status="not attempted", reason="export failed", reference=None)
    assert (report.status, report.reason) == ("not attempted", "export failed")
    report = benchmark(PLAIN, status="failed", reason="no runtime")
    assert (report.status, report.reason) == ("not attempted", "benchmark failed")
