"""What of the evidence becomes which metric, param or tag: names that MLflow's charts and comparisons group.

Of what a graph computes, only what decided over it is logged: `parity/` for float32, which is held to tolerances on
every case; `fidelity/` on the evaluation samples for lower precision, of which a case asks only that it does not crash.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.registry.evidence.records import (
    CRASHES,
    PLAIN,
    Choice,
    Measurement,
    OutputComparison,
    Scenarios,
    Variant,
    worst_by_output,
)
from onward.registry.evidence.reports import Evidence
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.host import hardware

# A tag of a version is read in a table.
MOST_WORDS = 5000


@dataclass(frozen=True)
class RunRecord:
    """What one child run says: a variant's figures, or why it has none."""

    name: str
    status: str
    reason: str
    metrics: dict[str, float]
    params: dict[str, str]
    files: list[Path]
    provider: str
    runtime: str
    options: SessionOptions


def run_records(evidence: Evidence, root: Path, settings: Mapping[str, Any]) -> Iterator[RunRecord]:
    """One entry a child run: the reference, every variant measured, and those that were not, with the reason.

    Args:
        evidence: of the model.
        root: the folder that the evidence's file paths are relative to.
        settings: of the model, as params.yaml has them, defaults included.
    """
    measured = {m.variant for m in evidence.benchmark.measurements}
    choices = {(c.variant, c.runtime): c for c in evidence.select.choices}
    variants = [*evidence.optimize.variants, *evidence.quantize.variants]
    originals = [evidence.benchmark.reference, evidence.benchmark.compiled]
    every = [*filter(None, originals), *evidence.benchmark.measurements]
    for m in every:
        choice = choices.get((m.variant, m.runtime))
        reason = choice.reason if choice and not m.reason else m.reason
        variant = _graph(m, evidence)
        yield RunRecord(
            name=label(m.variant, m.runtime),
            status=m.status,
            reason=reason,
            metrics=variant_metrics(m, evidence, settings),
            params={
                **graph_params(evidence),
                "precision": m.precision,
                **_how(variant, evidence),
                "runtime": m.runtime,
                "provider": m.provider,
                "session_options": str(m.options),
            },
            files=[root / file.path for file in m.files] if m.latencies else [],
            provider=m.provider,
            runtime=m.runtime,
            options=m.options,
        )
    for v in variants:
        if v.name not in measured:
            yield RunRecord(
                name=v.name,
                status=v.status if v.status != "passed" else "not attempted",
                reason=v.reason,
                metrics=_size_metrics(v),
                params={**graph_params(evidence), "precision": v.precision, **_how(v, evidence)},
                files=[],
                provider="",
                runtime="",
                options=SessionOptions(),
            )


def _graph(m: Measurement, evidence: Evidence) -> Variant | None:
    """The graph that was measured, where it is not the export itself."""
    made = (*evidence.optimize.variants, *evidence.quantize.variants)
    return next((variant for variant in made if variant.name == (m.graph or m.variant)), None)


def _how(variant: Variant | None, evidence: Evidence) -> dict[str, str]:
    """Which optimiser and which quantiser made a variant; "none" where none did."""
    if variant is None:
        return {"optimizer": "none", "quantizer": "none"}
    if variant in evidence.optimize.variants:
        return {"optimizer": variant.technique, "quantizer": "none"}
    return {"optimizer": "none" if variant.base == PLAIN else variant.base, "quantizer": variant.technique}


def variant_metrics(m: Measurement, evidence: Evidence, settings: Mapping[str, Any]) -> dict[str, float]:
    """A variant's figures under names that MLflow's charts group: everything before the last slash is a section."""
    metrics: dict[str, float] = {}
    for latency in m.latencies:
        for figure in ("mean", "std", "min", "max", "p50", "p90", "p95", "p99"):
            value = getattr(latency, f"{figure}_ms")
            if value is not None:
                metrics[f"latency_{m.runtime}/{latency.size}_{figure}_ms"] = value
        metrics[f"throughput_{m.runtime}/{latency.size}"] = latency.throughput
    for size, ratio in m.ratios.items():
        metrics[f"ratio_{m.runtime}/{size}"] = ratio.value
        metrics[f"ratio_{m.runtime}/{size}_low"] = ratio.low
        metrics[f"ratio_{m.runtime}/{size}_high"] = ratio.high
    choice = next((c for c in evidence.select.choices if (c.variant, c.runtime) == (m.variant, m.runtime)), None)
    single = {
        "quality": m.quality,
        "quality_drop": choice.quality_drop if choice else None,
        "session_ms": m.session_ms,
        "peak_memory_mb": m.peak_memory_mb,
        "size_mb": sum(file.size_bytes for file in m.files) / 1e6 if m.files else None,
    }
    metrics |= {name: value for name, value in single.items() if value is not None}
    metrics |= _parity_metrics(m) if m.precision == "float32" else _fidelity_metrics(m, evidence, settings)
    if m.scenarios is not None:
        metrics |= _scenario_metrics(m, m.scenarios)
    variant = _graph(m, evidence)
    return metrics | (_size_metrics(variant) if variant else {})


def _parity_metrics(m: Measurement) -> dict[str, float]:
    """How far a float32 graph is from the original over all cases, and how many of them it fails."""
    if not m.parity:
        return {}
    metrics: dict[str, float] = {}
    for output, worst in worst_by_output(m.parity).items():
        metrics |= {f"parity/{_key(output)}_{name}": value for name, value in _differences(worst)}
    metrics["parity/cases"] = sum(not case.probe for case in m.parity)
    metrics["parity/cases_failed"] = sum(case.failed for case in m.parity)
    return metrics


def _fidelity_metrics(m: Measurement, evidence: Evidence, settings: Mapping[str, Any]) -> dict[str, float]:
    """What a graph of lower precision is judged by (stages/parity/budget.py): crashes on cases; of each output that
    the model's own measure does not judge, the loss by its kind; and what params.yaml sets a limit to."""
    metrics: dict[str, float] = {}
    if m.parity:
        metrics["fidelity/cases"] = sum(not case.probe for case in m.parity)
        metrics["fidelity/cases_crashed"] = sum(case.failed and case.verdict in CRASHES for case in m.parity)
    budget = settings.get("budget", {})
    limited = {name: budget.get(f"min_{name}") is not None for name in ("snr_db", "cosine")}
    own = m.quality is not None
    by_kind = {kind.output for kind in evidence.verify.kinds if not kind.by_quality}
    if any(limited.values()) and not own:
        by_kind = set()
    judged = [one for one in m.fidelity if one.output in by_kind]
    for one in judged:
        found = {"loss": one.value, "loss_low": one.low, "loss_high": one.high, "limit": one.limit}
        metrics |= {f"fidelity/{_key(one.output)}_{name}": v for name, v in found.items() if v is not None}
    # Top-1 agreement has a floor beside the model's own measure (tolerance.agreement); else it is a measure of a kind.
    if own or any(one.kind in ("scores", "probabilities") for one in judged):
        limited["agreement"] = True
    for name, decides in limited.items():
        value = getattr(m, name)
        if decides and value is not None and math.isfinite(value):
            metrics[name] = value
    return metrics


def _scenario_metrics(m: Measurement, found: Scenarios) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for point in found.sweep:
        size = next(iter(point.sizes.values()))
        metrics[f"sweep_{m.runtime}/batch{size}_p50_ms"] = point.p50_ms
        metrics[f"sweep_{m.runtime}/batch{size}_throughput"] = point.throughput
    if found.knee:
        metrics[f"sweep_{m.runtime}/knee_batch"] = next(iter(found.knee.values()))
    for callers in found.callers:
        metrics[f"callers_{m.runtime}/{callers.callers}_p50_ms"] = callers.p50_ms
        if callers.p95_ms is not None:
            metrics[f"callers_{m.runtime}/{callers.callers}_p95_ms"] = callers.p95_ms
        metrics[f"callers_{m.runtime}/{callers.callers}_throughput"] = callers.throughput
    if found.cold_start_ms is not None:
        metrics["cold_start_ms"] = found.cold_start_ms
    return metrics


def version_tags(evidence: Evidence) -> dict[str, str]:
    """What a registered version carries of its evidence, for gates and for people."""
    chosen = chosen_measurement(evidence)
    assert chosen is not None
    choice = next(c for c in evidence.select.choices if c.chosen)
    graph, machine = evidence.export.graph, evidence.benchmark.machine
    found: dict[str, Any] = {
        "variant": chosen.variant,
        "runtime": chosen.runtime,
        "provider": chosen.provider,
        "runtimes": " ".join(winner.runtime for winner in evidence.select.winners) or None,
        "session_options": str(chosen.options),
        "precision": chosen.precision,
        "opset": graph.opsets.get("ai.onnx") if graph else None,
        "verdict": "passed",
        "parity": evidence.verify.status,
        "data": evidence.data.status,
        "findings": "; ".join([*evidence.train.findings, *evidence.export.findings])[:MOST_WORDS] or None,
        "quality": chosen.quality,
        "quality_drop": choice.quality_drop,
        "quality_budget": choice.quality_budget if choice.quality_measure else evidence.select.quality_budget,
        "quality_measure": choice.quality_measure or None,
        "latency_ratio": choice.ratio.value if choice.ratio else None,
        "latency_ratio_high": choice.ratio.high if choice.ratio else None,
        "size_mb": sum(file.size_bytes for file in chosen.files) / 1e6,
        "cpu": machine.cpu if machine else None,
        "instruction_sets": hardware.kind(machine) if machine else None,
    }
    return {key: _text(value) for key, value in found.items() if value is not None}


def chosen_measurement(evidence: Evidence) -> Measurement | None:
    wanted = (evidence.select.variant, evidence.select.runtime)
    return next((m for m in evidence.benchmark.measurements if (m.variant, m.runtime) == wanted), None)


def sentence(evidence: Evidence) -> str:
    chosen, choice = chosen_measurement(evidence), next(c for c in evidence.select.choices if c.chosen)
    assert chosen is not None
    speed = ""
    if choice.ratio and chosen.variant != PLAIN:
        speed = f", {1 / choice.ratio.value:.2f} times as fast as the plain export"
    quality = "" if chosen.quality is None else f", quality {chosen.quality:.4f}"
    return f"{chosen.variant} on {chosen.runtime}{speed}{quality}{_lost(choice)}."


def _lost(choice: Choice) -> str:
    """What decided over a version's answers, in words; nothing where nothing was lost."""
    if not choice.quality_drop:
        return ""
    if choice.quality_measure in ("", "quality"):
        return f" ({choice.quality_drop:+.4f} lost)"
    limit = "" if choice.quality_budget is None else f", {choice.quality_budget:g} allowed"
    return f", {choice.quality_measure} {choice.quality_drop:.4g}{limit}"


def graph_params(evidence: Evidence) -> dict[str, str]:
    graph = evidence.export.graph
    if graph is None:
        return {}
    params = {f"opset_{domain}": str(number) for domain, number in graph.opsets.items() if domain != "ai.onnx"}
    return params | {
        "opset": str(graph.opsets.get("ai.onnx", "")),
        "ir_version": str(graph.ir_version),
        "producer": graph.producer,
        "exporter": evidence.export.how,
    }


def _size_metrics(variant: Variant) -> dict[str, float]:
    found = {"nodes": variant.nodes, "compression": variant.compression, "reduction": variant.reduction}
    return {name: float(value) for name, value in found.items() if value is not None}


def _differences(worst: OutputComparison) -> Iterator[tuple[str, float]]:
    for name in ("max_abs", "mean_abs", "max_rel", "max_ulp", "cosine", "snr_db", "share_out"):
        value = getattr(worst, name)
        if value is not None and math.isfinite(value):  # the noise of two equal outputs is none, in dB infinite
            yield name, value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"export": {"opset": 20}}` to `{"export.opset": "20"}`; lists stay whole, as JSON."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{_key(str(key))}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def label(variant: str, runtime: str) -> str:
    return variant if runtime == "cpu" else f"{variant}-{runtime}"


def _key(name: str) -> str:
    """`name` in the characters that MLflow allows in a metric's or a param's key."""
    return re.sub(r"[^\w.-]", "_", name)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
