"""Convert evidence to MLflow metrics, params and tags, under names that MLflow's charts and comparisons group.

Of the differences between a graph and the original, only those that were judged are logged. For float32 these are
`parity/`: all cases must stay within the tolerances. For lower precision these are `fidelity/`: differences on the
evaluation samples count, and cases must only not crash.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.registry.evidence.headline import by_batch, by_callers, headline
from onward.registry.evidence.records import (
    CRASHES,
    PLAIN,
    Choice,
    Measurement,
    OutputComparison,
    Scenarios,
    Variant,
    by_speed,
    worst_by_output,
    worst_size,
)
from onward.registry.evidence.reports import Evidence, OnHost
from onward.registry.evidence.session_options import SessionOptions
from onward.registry.evidence.unmeasured import is_measured
from onward.registry.host import hardware

# MLflow's limit for the length of a tag, in characters.
LONGEST_TAG = 5000


@dataclass(frozen=True)
class RunRecord:
    """The content of one child run: the figures of a measured variant.

    Attributes:
        name: the variant and its runtime, as `label` writes them.
        status: the variant's status.
        reason: why it has this status.
        metrics: its figures.
        params: how it was made and measured.
        files: the paths of its files; empty if no latency was measured.
        provider: its execution provider.
        runtime: its runtime.
        options: its session options.
        series: figures over a size, as (size, value) pairs, which become steps of a metric.
        chosen: whether it is the chosen variant.
    """

    name: str
    status: str
    reason: str
    metrics: dict[str, float]
    params: dict[str, str]
    files: list[Path]
    provider: str
    runtime: str
    options: SessionOptions
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    chosen: bool = False


def run_records(evidence: Evidence, root: Path, settings: Mapping[str, Any]) -> Iterator[RunRecord]:
    """Yield the content of each child run: the originals and the measured variants.

    registry/evidence/unmeasured.py lists the other variants.

    Args:
        evidence: the model's evidence.
        root: the folder that the evidence's file paths are relative to.
        settings: the model's settings from params.yaml, including defaults.
    """
    choices = {(choice.variant, choice.runtime): choice for choice in evidence.select.choices}
    benchmark = evidence.benchmark
    originals = [benchmark.reference, benchmark.compiled, benchmark.compiled_bfloat16]
    for measurement in [*filter(None, originals), *filter(is_measured, benchmark.measurements)]:
        choice = choices.get((measurement.variant, measurement.runtime))
        reason = choice.reason if choice and not measurement.reason else measurement.reason
        yield RunRecord(
            name=label(measurement.variant, measurement.runtime),
            status=measurement.status,
            reason=reason,
            metrics=variant_metrics(measurement, evidence, settings),
            params={
                **graph_params(evidence),
                "precision": measurement.precision,
                **_techniques(_graph(measurement, evidence), evidence),
                "runtime": measurement.runtime,
                "provider": measurement.provider,
                "session_options": str(measurement.options),
            },
            files=[root / file.path for file in measurement.files] if measurement.latencies else [],
            provider=measurement.provider,
            runtime=measurement.runtime,
            options=measurement.options,
            series=by_batch(measurement) | by_callers(measurement),
            chosen=bool(choice and choice.chosen),
        )


def _made(evidence: Evidence) -> list[Variant]:
    """The variants that the optimize and quantize stages made."""
    return [*evidence.optimize.variants, *evidence.quantize.variants]


def _graph(measurement: Measurement, evidence: Evidence) -> Variant | None:
    """The variant that was measured; None for the plain export."""
    name = measurement.graph or measurement.variant
    return next((variant for variant in _made(evidence) if variant.name == name), None)


def _techniques(variant: Variant | None, evidence: Evidence) -> dict[str, str]:
    """The optimizer and the quantizer that made a variant; "none" if it was made without one."""
    if variant is None:
        return {"optimizer": "none", "quantizer": "none"}
    if variant in evidence.optimize.variants:
        return {"optimizer": variant.technique, "quantizer": "none"}
    return {"optimizer": "none" if variant.base == PLAIN else variant.base, "quantizer": variant.technique}


def variant_metrics(measurement: Measurement, evidence: Evidence, settings: Mapping[str, Any]) -> dict[str, float]:
    """A variant's figures as MLflow metrics. MLflow groups them by the text before the last slash of their names.

    Args:
        measurement: the variant's measurement.
        evidence: the model's evidence.
        settings: the model's settings from params.yaml, including defaults.
    """
    choices = ((item.variant, item.runtime, item) for item in evidence.select.choices)
    chosen_as = (measurement.variant, measurement.runtime)
    choice = next((item for variant, runtime, item in choices if (variant, runtime) == chosen_as), None)
    is_original = measurement not in evidence.benchmark.measurements
    metrics = headline(measurement, choice, is_original=is_original)
    for latency in measurement.latencies:
        for figure in ("mean", "std", "min", "max", "p50", "p90", "p95", "p99"):
            value = getattr(latency, f"{figure}_ms")
            if value is not None:
                metrics[f"latency/{latency.size}_{figure}_ms"] = value
        metrics[f"throughput/{latency.size}_items_per_s"] = latency.throughput
    for size, ratio in measurement.ratios.items():
        metrics[f"ratio/{size}"] = ratio.value
        metrics[f"ratio/{size}_low"] = ratio.low
        metrics[f"ratio/{size}_high"] = ratio.high
    for name, ratios in (("worst", measurement.ratios), ("host_worst", measurement.host_ratios)):
        if worst := worst_size(ratios):
            metrics[f"ratio/{name}"] = ratios[worst].value
    if host := measurement.host_ratios.get("all"):
        metrics |= {"ratio/host": host.value, "ratio/host_low": host.low}
        metrics["ratio/host_high"] = host.high
    load = {"load/session_ms": measurement.session_ms, "memory/peak_mb": measurement.peak_memory_mb}
    metrics |= {name: value for name, value in load.items() if value is not None}
    if measurement.precision == "float32":
        metrics |= _parity_metrics(measurement)
    else:
        metrics |= _fidelity_metrics(measurement, evidence, settings)
    if measurement.scenarios is not None:
        metrics |= _scenario_metrics(measurement.scenarios)
    variant = _graph(measurement, evidence)
    return metrics | (_size_metrics(variant) if variant else {})


def _parity_metrics(measurement: Measurement) -> dict[str, float]:
    """The largest differences of a float32 graph from the original over all cases, and the number of failed cases."""
    if not measurement.parity:
        return {}
    metrics: dict[str, float] = {}
    for output, worst in worst_by_output(measurement.parity).items():
        metrics |= {f"parity/{_key(output)}_{name}": value for name, value in _differences(worst)}
    metrics["parity/cases"] = sum(not case.probe for case in measurement.parity)
    metrics["parity/cases_failed"] = sum(case.failed for case in measurement.parity)
    return metrics


def _fidelity_metrics(measurement: Measurement, evidence: Evidence, settings: Mapping[str, Any]) -> dict[str, float]:
    """The figures that a graph of lower precision is judged by (stages/parity/budget.py).

    These are the crashed cases, the measures that params.yaml sets a limit for, and the loss of each output that the
    model's own measure does not judge, by the output's kind.
    """
    metrics: dict[str, float] = {}
    cases = measurement.parity
    if cases:
        metrics["fidelity/cases"] = sum(not case.probe for case in cases)
        metrics["fidelity/cases_crashed"] = sum(case.failed and case.verdict in CRASHES for case in cases)
    budget = settings.get("budget", {})
    decides = {name: budget.get(f"min_{name}") is not None for name in ("snr_db", "cosine")}
    own_measure = measurement.quality is not None
    by_kind = {kind.output for kind in evidence.verify.kinds if not kind.by_quality}
    if any(decides.values()) and not own_measure:
        by_kind = set()
    losses = [loss for loss in measurement.fidelity if loss.output in by_kind]
    for loss in losses:
        figures = {"loss": loss.value, "loss_low": loss.low, "loss_high": loss.high, "limit": loss.limit}
        metrics |= {
            f"fidelity/{_key(loss.output)}_{key}": figure for key, figure in figures.items() if figure is not None
        }
    # With the model's own measure, top-1 agreement has a minimum too (tolerance.agreement). Without it, agreement is
    # the measure of the kinds "scores" and "probabilities".
    if own_measure or any(loss.kind in ("scores", "probabilities") for loss in losses):
        decides["agreement"] = True
    for name, is_judged in decides.items():
        value = getattr(measurement, name)
        if is_judged and name != "snr_db" and value is not None and math.isfinite(value):
            metrics[f"fidelity/{name}"] = value
    return metrics


def _scenario_metrics(scenarios: Scenarios) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if scenarios.knee:
        metrics["by_batch/knee_batch"] = next(iter(scenarios.knee.values()))
    if scenarios.cold_start_ms is not None:
        metrics["load/cold_start_ms"] = scenarios.cold_start_ms
    return metrics


def version_tags(evidence: Evidence) -> dict[str, str]:
    """The tags of a registered version: the part of its evidence that gates check and users read.

    Args:
        evidence: the model's evidence, in which a variant was chosen.
    """
    chosen = chosen_measurement(evidence)
    assert chosen is not None
    choice = _chosen_choice(evidence)
    graph, machine = evidence.export.graph, evidence.benchmark.machine
    figures = headline(chosen, choice)
    machines = [*filter(None, [machine]), *(other.machine for other in evidence.select.elsewhere)]
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
        "findings": "; ".join([*evidence.train.findings, *evidence.export.findings])[:LONGEST_TAG] or None,
        "quality": chosen.quality,
        "quality_drop": choice.quality_drop,
        "quality_budget": choice.quality_budget if choice.quality_measure else evidence.select.quality_budget,
        "quality_measure": choice.quality_measure or None,
        "latency_ratio": choice.ratio.value if choice.ratio else None,
        "latency_ratio_high": choice.ratio.high if choice.ratio else None,
        "latency_ratio_worst": f"{choice.worst.value:.6g} at {choice.worst_size}" if choice.worst else None,
        "fastest": _fastest(evidence) or None,
        "size_mb": sum(file.size_bytes for file in chosen.files) / 1e6,
        **{name: figures.get(name) for name in ("p50_ms", "speedup", "fidelity_snr_db")},
        "best_batch": best_batch(chosen),
        "cpu": machine.cpu if machine else None,
        "instruction_sets": "; ".join(dict.fromkeys(map(hardware.kind, machines))) or None,
        **{f"host.{other.name}": _on_host(other) for other in evidence.select.elsewhere},
    }
    return {key: _text(value) for key, value in found.items() if value is not None}


def _on_host(other: OnHost) -> str | None:
    """What is served on a class of machines, and how fast it was there."""
    best = other.best
    if best is None:
        return None
    winner, choice = best
    speed = f", {1 / choice.ratio.value:.2f} times as fast as the plain export there" if choice.ratio else ""
    return f"{winner.variant} on {winner.runtime}, {winner.p50_ms:.3g} ms{speed} ({other.machine.cpu})"


def host_metrics(evidence: Evidence) -> dict[str, float]:
    """The latency and speed of what is served on each other class of machines, as metrics of the model's run."""
    found = {}
    for other in evidence.select.elsewhere:
        if best := other.best:
            winner, choice = best
            found[f"host/{other.name}/p50_ms"] = winner.p50_ms
            if choice.ratio:
                found[f"host/{other.name}/speedup"] = 1 / choice.ratio.value
    return found


def best_batch(measurement: Measurement) -> int | None:
    """The batch size that a server should join requests to: the knee, else the size with the best throughput.

    Args:
        measurement: the variant's measurement.
    """
    scenarios = measurement.scenarios
    if scenarios is None or not scenarios.sweep:
        return None
    if scenarios.knee:
        return next(iter(scenarios.knee.values()))
    best = max(scenarios.sweep, key=lambda point: point.throughput)
    return next(iter(best.sizes.values()), None)


def _fastest(evidence: Evidence) -> str:
    """The fastest winner, if it is not the version's main one; "" if it is."""
    first, main = by_speed(evidence.select.winners)[0], evidence.select.winners[0]
    if first.runtime == main.runtime:
        return ""
    speed = ""
    if first.host_ratio:
        speed = f", {1 / first.host_ratio.value:.2f} times as fast as the plain export on {main.runtime}"
    return f"{first.variant} on {first.runtime}{speed}"


def chosen_measurement(evidence: Evidence) -> Measurement | None:
    """The measurement of the chosen variant; None if no variant was chosen.

    Args:
        evidence: the model's evidence.
    """
    wanted = (evidence.select.variant, evidence.select.runtime)
    measurements = evidence.benchmark.measurements
    return next((item for item in measurements if (item.variant, item.runtime) == wanted), None)


def _chosen_choice(evidence: Evidence) -> Choice:
    return next(choice for choice in evidence.select.choices if choice.chosen)


def sentence(evidence: Evidence) -> str:
    """Describe the chosen variant in one sentence: its name, its speed and its quality.

    Args:
        evidence: the model's evidence, in which a variant was chosen.
    """
    chosen, choice = chosen_measurement(evidence), _chosen_choice(evidence)
    assert chosen is not None
    speed = ""
    if choice.ratio and chosen.variant != PLAIN:
        speed = f", {1 / choice.ratio.value:.2f} times as fast as the plain export"
    quality = "" if chosen.quality is None else f", quality {chosen.quality:.4f}"
    fastest = _fastest(evidence)
    more = f" Fastest where its runtime is installed: {fastest}." if fastest else ""
    return f"{chosen.variant} on {chosen.runtime}{speed}{quality}{_lost(choice)}.{more}"


def _lost(choice: Choice) -> str:
    """The loss of quality that the choice was based on, as text; "" if nothing was lost."""
    if not choice.quality_drop:
        return ""
    if choice.quality_measure in ("", "quality"):
        return f" ({choice.quality_drop:+.4f} lost)"
    limit = "" if choice.quality_budget is None else f", {choice.quality_budget:g} allowed"
    return f", {choice.quality_measure} {choice.quality_drop:.4g}{limit}"


def graph_params(evidence: Evidence) -> dict[str, str]:
    """The params that describe the exported graph; empty if there is none.

    Args:
        evidence: the model's evidence.
    """
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
    return {f"graph/{name}": float(value) for name, value in found.items() if value is not None}


def _differences(worst: OutputComparison) -> Iterator[tuple[str, float]]:
    for name in ("max_abs", "mean_abs", "max_rel", "max_ulp", "cosine", "snr_db", "share_out"):
        value = getattr(worst, name)
        if value is not None and math.isfinite(value):  # without noise, snr_db is infinite
            yield name, value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings: `{"export": {"opset": 20}}` becomes `{"export.opset": "20"}`. Lists become JSON.

    Args:
        nested: the settings.
        prefix: the beginning of each name.
    """
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{_key(str(key))}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def label(variant: str, runtime: str) -> str:
    """The name of a variant on a runtime: the variant alone on `cpu`, else both.

    Args:
        variant: the variant's name.
        runtime: the runtime's name.
    """
    return variant if runtime == "cpu" else f"{variant}-{runtime}"


def _key(name: str) -> str:
    """`name`, with characters that MLflow does not allow in the key of a metric or a param replaced by `_`."""
    return re.sub(r"[^\w.-]", "_", name)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
