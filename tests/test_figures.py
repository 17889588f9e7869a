"""Only the figures that judged a variant are logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onward.registry.evidence.headline import by_batch, by_callers, mean_p50
from onward.registry.evidence.metric_names import current, with_earlier
from onward.registry.evidence.records import (
    Callers,
    CaseResult,
    OutputComparison,
    OutputFidelity,
    OutputKind,
    Ratio,
    Scenarios,
    SweepPoint,
)
from onward.registry.evidence.reports import Evidence
from onward.registry.evidence.unmeasured import unmeasured
from onward.registry.gates.builtin import judge
from onward.registry.tracking.card import card_text
from onward.registry.tracking.metrics import run_records, sentence, variant_metrics, version_tags
from tests.evidence_factory import make_publication


def int8_evidence(root: Path, quality: float | None = 0.89, crashed: bool = False, **kind: Any) -> Evidence:
    """The int8 variant `fast` was chosen. By float32 tolerances it fails its only case and a probe."""
    evidence = make_publication(root).evidence
    off = OutputComparison(output="y", verdict="out of tolerance", max_abs=0.9, cosine=0.22, snr_db=0.4, share_out=0.8)
    case = CaseResult(
        case="normal0@b1", seed=1, sizes={"batch": 1}, verdict="aborted" if crashed else "out of tolerance",
        outputs=[] if crashed else [off],
    )  # fmt: skip
    probe = case.model_copy(update={"case": "nan@b1", "probe": True})
    fast = evidence.benchmark.measurements[1]
    fast.precision, fast.parity, fast.quality, fast.agreement = "int8", [case, probe], quality, 0.97
    fast.snr_db, fast.cosine = 21.0, 0.983
    fast.fidelity = [
        OutputFidelity(
            output="y", kind="scores", measure="changed top-1 answers", value=0.03, low=0.01, high=0.05, limit=0.1,
            holds=True,
        )
    ]  # fmt: skip
    evidence.verify.kinds = [OutputKind(output="y", kind="scores", axis=1, by_quality=quality is not None, **kind)]
    return evidence


def metrics_of(evidence: Evidence, number: int = 1, **budget: float) -> dict[str, float]:
    return variant_metrics(evidence.benchmark.measurements[number], evidence, {"budget": budget})


def computed(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics about outputs, without those about time or size."""
    about = ("parity/", "fidelity", "quality")
    return {name: value for name, value in metrics.items() if name.startswith(about)}


def test_float32_shows_parity_and_no_fidelity(tmp_path: Path) -> None:
    found = computed(metrics_of(int8_evidence(tmp_path), 0))
    assert found == {
        "parity/y_max_abs": 1e-7, "parity/y_mean_abs": 1e-8, "parity/y_max_rel": 1e-6, "parity/y_share_out": 0.0,
        "parity/cases": 1, "parity/cases_failed": 0, "quality": 0.9, "quality_drop": 0.0,
    }  # fmt: skip


def test_lower_precision_shows_no_parity_figures(tmp_path: Path) -> None:
    found = computed(metrics_of(int8_evidence(tmp_path)))
    assert found == {
        "fidelity/cases": 1, "fidelity/cases_crashed": 0, "quality": 0.89, "quality_drop": 0.0,
        "fidelity/agreement": 0.97, "fidelity_snr_db": 21.0,
    }  # fmt: skip


def test_a_crash_is_counted_at_any_precision(tmp_path: Path) -> None:
    assert metrics_of(int8_evidence(tmp_path, crashed=True))["fidelity/cases_crashed"] == 1


def test_an_output_judged_by_kind_shows_its_loss_and_its_limit(tmp_path: Path) -> None:
    found = computed(metrics_of(int8_evidence(tmp_path, quality=None)))
    assert {name: value for name, value in found.items() if name.startswith("fidelity/y")} == {
        "fidelity/y_loss": 0.03, "fidelity/y_loss_low": 0.01, "fidelity/y_loss_high": 0.05, "fidelity/y_limit": 0.1
    }  # fmt: skip
    assert "fidelity/cosine" not in found


def test_limits_of_the_budget_are_shown_instead_of_kinds(tmp_path: Path) -> None:
    found = computed(metrics_of(int8_evidence(tmp_path, quality=None), min_cosine=0.9))
    assert found["fidelity/cosine"] == 0.983
    assert not {"fidelity/agreement", "fidelity/y_loss"} & found.keys()
    both = computed(metrics_of(int8_evidence(tmp_path), min_cosine=0.9, min_snr_db=20))
    assert (both["fidelity/cosine"], both["fidelity_snr_db"], both["fidelity/agreement"]) == (0.983, 21.0, 0.97)


def test_every_child_run_records_the_figures_of_its_precision(tmp_path: Path) -> None:
    runs = {run_record.name: run_record.metrics for run_record in run_records(int8_evidence(tmp_path), tmp_path, {})}
    assert {name for name, metrics in runs.items() if any(key.startswith("parity/") for key in metrics)} == {
        "reference", "plain"
    }  # fmt: skip


def test_a_version_records_which_measure_judged_its_outputs(tmp_path: Path) -> None:
    evidence = int8_evidence(tmp_path, quality=None)
    choice = evidence.select.choices[1]
    choice.quality_drop, choice.quality_budget, choice.quality_measure = 0.03, 0.1, "y: changed top-1 answers"
    tags = version_tags(evidence)
    assert "quality" not in tags  # agreement is not a quality
    assert sentence(evidence).endswith(", y: changed top-1 answers 0.03, 0.1 allowed.")
    parity, quality = judge(["parity", "quality"], tags, None)
    assert parity.met
    assert quality.met
    assert quality.detail == "y: changed top-1 answers 0.03, 0.1 allowed"


def test_the_worst_size_and_the_fastest_runtime_are_recorded(tmp_path: Path) -> None:
    evidence = make_publication(tmp_path).evidence
    fast, winners = evidence.benchmark.measurements[1], evidence.select.winners
    half, most = Ratio(value=0.5, low=0.49, high=0.51), Ratio(value=0.9, low=0.89, high=0.91)
    fast.ratios = {"b1": half, "b8": most, "all": Ratio(value=0.67, low=0.66, high=0.68)}
    fast.host_ratios = {"b1": half, "b8": half, "all": half}
    found = metrics_of(evidence)
    assert (found["ratio/worst"], found["ratio/host_worst"]) == (0.9, 0.5)
    assert (found["ratio/host"], found["ratio/host_low"], found["ratio/host_high"]) == (0.5, 0.49, 0.51)
    evidence.select.choices[1] = evidence.select.choices[1].model_copy(update={"worst": most, "worst_size": "b8"})
    winners[0].host_ratio = half
    assert version_tags(evidence)["latency_ratio_worst"] == "0.9 at b8"
    assert "fastest" not in version_tags(evidence)
    there = {"variant": "plain-bf16", "runtime": "openvino-native", "host_ratio": Ratio(value=0.25, low=0.2, high=0.3)}
    winners.append(winners[0].model_copy(update=there))
    tag = "plain-bf16 on openvino-native, 4.00 times as fast as the plain export on cpu"
    assert version_tags(evidence)["fastest"] == tag
    assert sentence(evidence).endswith(f" Fastest where its runtime is installed: {tag}.")


def test_every_original_is_a_run(tmp_path: Path) -> None:
    evidence = make_publication(tmp_path).evidence
    reference = evidence.benchmark.reference
    assert reference is not None
    lower = reference.model_copy(update={"variant": "torch.compile bfloat16", "precision": "bfloat16"})
    evidence.benchmark.compiled_bfloat16 = lower
    assert "torch.compile bfloat16" in {record.name.split(" (")[0] for record in run_records(evidence, tmp_path, {})}


def test_earlier_names_of_metrics_are_understood() -> None:
    earlier = {
        "latency_cpu/b1_p50_ms": 1.0, "throughput_cpu/b1": 2.0, "ratio_cpu/all": 0.5, "agreement": 0.9, "nodes": 7.0,
        "parity/y_max_abs": 1e-7,
    }  # fmt: skip
    now = {
        "latency/b1_p50_ms": 1.0, "throughput/b1_items_per_s": 2.0, "ratio/all": 0.5, "fidelity/agreement": 0.9,
        "graph/nodes": 7.0, "parity/y_max_abs": 1e-7,
    }  # fmt: skip
    assert current(earlier) == current(now) == now
    assert with_earlier(now, "cpu") == with_earlier(earlier, "cpu") == {**earlier, **now}
    assert with_earlier(now, "") == {"agreement": 0.9, "nodes": 7.0, **now}


def test_a_p50_over_the_sizes_is_their_weighted_geometric_mean(tmp_path: Path) -> None:
    latency = make_publication(tmp_path).evidence.benchmark.measurements[0].latencies[0]
    other = latency.model_copy(update={"p50_ms": 16.0, "weight": 3.0})
    assert mean_p50([latency, other]) == pytest.approx(8.0)
    assert mean_p50([]) is None


def test_figures_over_the_batch_come_from_the_sweep_or_from_comparable_sizes(tmp_path: Path) -> None:
    fast = make_publication(tmp_path).evidence.benchmark.measurements[1]
    [latency] = fast.latencies
    sizes = [{"batch": 1, "length": 8}, {"batch": 4, "length": 8}, {"batch": 4, "length": 16}]
    fast.latencies = [latency.model_copy(update={"sizes": size, "p50_ms": float(n)}) for n, size in enumerate(sizes, 1)]
    assert by_batch(fast)["by_batch/p50_ms"] == [(1, 1.0), (4, 2.0)]
    fast.scenarios = Scenarios(
        sweep=[SweepPoint(sizes={"batch": n}, p50_ms=n / 2, throughput=2000.0) for n in (1, 2)],
        callers=[Callers(callers=2, samples=9, p50_ms=3.0, p95_ms=None, throughput=5.0)],
    )
    assert by_batch(fast)["by_batch/p50_ms"] == [(1, 0.5), (2, 1.0)]
    assert by_callers(fast) == {"by_callers/p50_ms": [(2, 3.0)], "by_callers/items_per_s": [(2, 5.0)]}


def test_every_variant_is_either_a_run_or_a_row_of_the_unmeasured(tmp_path: Path) -> None:
    evidence = make_publication(tmp_path).evidence
    plain = evidence.benchmark.measurements[0]
    evidence.benchmark.measurements.append(
        plain.model_copy(update={"variant": "slow", "status": "not attempted", "reason": "too slow"})
    )
    runs = {record.name for record in run_records(evidence, tmp_path, {})}
    rows = {row.variant: row for row in unmeasured(evidence)}
    assert runs == {"reference", "plain", "fast"}
    assert {name: (row.stage, row.status, row.reason) for name, row in rows.items()} == {
        "odd": ("optimize", "failed", "differs by 3"),
        "slow": ("benchmark", "not attempted", "too slow"),
    }


def test_cards_escape_what_others_wrote_and_name_limits_once(tmp_path: Path) -> None:
    publication = make_publication(tmp_path)
    evidence = publication.evidence
    evidence.verify.findings = ["<script>alert(1)</script> | [x](http://y)"]
    off = CaseResult(case="a@b1", seed=1, sizes={"batch": 1}, probe=True, verdict="NaN mismatch")
    evidence.verify.cases += [off, off.model_copy(update={"case": "b@b1"})]
    text = card_text(evidence, {}, publication.inputs, publication.outputs)
    assert "<script" not in text
    assert r"\[x\](http://y)" in text
    assert "- the plain export differs from the original (NaN mismatch) (probe a@b1, b@b1)" in text
