"""Write a version's model card: MODEL_CARD.md with Hugging Face's metadata, and the description of the version.

The card follows from the evidence and from `card` in params.yaml. It contains no time, so the same evidence gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from onward.registry.evidence.headline import headline
from onward.registry.evidence.records import CRASHES, CaseResult, Choice, Measurement, TensorSpec
from onward.registry.evidence.reports import Evidence
from onward.registry.host import hardware
from onward.registry.store.entry_pages import LONGEST
from onward.registry.text import cut_after_line, markdown
from onward.registry.tracking.markdown_table import figure, table
from onward.registry.tracking.metrics import chosen_measurement, sentence

FILE = "MODEL_CARD.md"
_SHOWN = ("quality", "quality_drop", "fidelity_snr_db", "p50_ms", "speedup", "size_mb")
_SHORTENED = f"\n\n... The whole card is {FILE} of the version and of its run."


def model_card(
    evidence: Evidence, params: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> str:
    """The text of MODEL_CARD.md.

    Args:
        evidence: the model's evidence, in which a variant was chosen.
        params: the model's settings from params.yaml, including defaults.
        inputs: the inputs of the model.
        outputs: the outputs of the model.
    """
    import yaml

    metadata = yaml.safe_dump(_metadata(evidence, params), sort_keys=False, allow_unicode=True)
    return f"---\n{metadata}---\n\n# {markdown(evidence.model)}\n\n{card_text(evidence, params, inputs, outputs)}\n"


def description(text: str) -> str:
    """A card's text as a description, cut after a line if MLflow allows no longer one.

    Args:
        text: the text that `card_text` returned.
    """
    return cut_after_line(text, LONGEST, _SHORTENED)


def card_text(
    evidence: Evidence, params: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> str:
    """The card's text in Markdown, without metadata and title.

    Args:
        evidence: the model's evidence, in which a variant was chosen.
        params: the model's settings from params.yaml, including defaults.
        inputs: the inputs of the model.
        outputs: the outputs of the model.
    """
    about = params.get("card") or {}
    chosen = chosen_measurement(evidence)
    assert chosen is not None
    sections: list[tuple[str, Iterable[str]]] = [
        ("", [markdown(sentence(evidence)), *([markdown(about["description"])] if about.get("description") else [])]),
        ("Licence and contact", [_licence(about)]),
        ("Intended use", [markdown(about["intended_use"])] if about.get("intended_use") else []),
        ("Quality", _quality(evidence, chosen)),
        ("Limits", _limits(evidence, chosen, params, about)),
        ("Inputs and preprocessing", _inputs(inputs, params, about)),
        ("Outputs", [_tensors(outputs, params)]),
        ("Why this variant", _reasons(evidence)),
        ("Measured hosts", _hosts(evidence, chosen)),
        ("Data", _data(evidence)),
    ]
    parts = []
    for title, paragraphs in sections:
        text = "\n\n".join(filter(None, paragraphs))
        if text:
            parts.append(f"## {title}\n\n{text}" if title else text)
    return "\n\n".join(parts)


def _metadata(evidence: Evidence, params: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of Hugging Face's model cards: https://huggingface.co/docs/hub/model-cards."""
    about = params.get("card") or {}
    chosen = chosen_measurement(evidence)
    assert chosen is not None
    found: dict[str, Any] = {name: about[name] for name in ("license", "language") if about.get(name)}
    found["library_name"] = "onnx"
    if about.get("pipeline_tag"):
        found["pipeline_tag"] = about["pipeline_tag"]
    found["tags"] = [*dict.fromkeys(["onnx", "onnxruntime", chosen.precision, *about.get("tags", [])])]
    for name in ("datasets", "base_model"):
        if about.get(name):
            found[name] = about[name]
    metrics: list[dict[str, Any]] = []
    measure = str(params.get("quality") or "quality").rpartition(":")[2]
    if chosen.quality is not None:
        metrics.append({"type": measure, "name": "quality", "value": float(f"{chosen.quality:.6g}")})
    for latency in chosen.latencies:
        name = f"p50 latency in ms at {latency.size} on {chosen.runtime}"
        metrics.append({"type": "latency", "name": name, "value": float(f"{latency.p50_ms:.4g}")})
    if metrics:
        task = {"type": about.get("pipeline_tag") or "other"}
        dataset = {"name": f"{evidence.model}-evaluation", "type": "evaluation"}
        found["model-index"] = [
            {"name": evidence.model, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
        ]
    return found


def _licence(about: Mapping[str, Any]) -> str:
    licence = markdown(about.get("license") or "not stated (card.license in params.yaml)")
    contact = markdown(about.get("contact") or "not stated (card.contact in params.yaml)")
    return f"Licence: {licence}. Contact: {contact}."


def _quality(evidence: Evidence, chosen: Measurement) -> Iterator[str]:
    choices = {(choice.variant, choice.runtime): choice for choice in evidence.select.choices}
    rows = []
    benchmark = evidence.benchmark
    plain = next((m for m in benchmark.measurements if m.variant == "plain" and m.runtime == chosen.runtime), None)
    for title, found in (("original", benchmark.reference), ("plain export", plain), ("this version", chosen)):
        if found is not None:
            choice = choices.get((found.variant, found.runtime))
            values = headline(found, choice, is_original=found is benchmark.reference)
            rows.append([title, found.variant, *(figure(values.get(name)) for name in _SHOWN)])
    yield table(["", "variant", *_SHOWN], rows)
    choice = _choice(evidence)
    if choice is not None and choice.quality_drop is not None:
        limit = choice.quality_budget if choice.quality_measure else evidence.select.quality_budget
        allowed = "" if limit is None else f", {limit:g} allowed"
        measure = choice.quality_measure or evidence.select.quality_measure or "quality"
        yield f"Loss by {markdown(measure)}: {choice.quality_drop:.4g}{allowed}."
    cases = [case for case in chosen.parity if not case.probe]
    if cases and chosen.precision == "float32":
        passed = sum(not case.failed for case in cases)
        yield f"Verified: {passed} of {len(cases)} cases are within the tolerances of the original."
    elif cases:
        crashed = sum(case.verdict in CRASHES for case in cases)
        yield (
            f"Verified: {crashed} of {len(cases)} cases crashed. Lower precision has no tolerances per element: its "
            "answers on the evaluation samples count."
        )


def _choice(evidence: Evidence) -> Choice | None:
    return next((choice for choice in evidence.select.choices if choice.chosen), None)


def _limits(
    evidence: Evidence, chosen: Measurement, params: Mapping[str, Any], about: Mapping[str, Any]
) -> Iterator[str]:
    lines = [markdown(about["limitations"])] if about.get("limitations") else []
    dims = params.get("dims") or {}
    for name, dim in dims.items():
        low, high = dim.get("min"), dim.get("max")
        if dim.get("size") is None and high is not None:
            factor = dim.get("multiple_of") or 1
            only = f", multiples of {factor}" if factor > 1 else ""
            lines.append(f"{markdown(name)}: {low} to {high}{only}; the session refuses other sizes")
    known: set[str] = set()
    for where, cases in (("the plain export", evidence.verify.cases), ("this version", chosen.parity)):
        exact = where == "the plain export" or chosen.precision == "float32"
        found: dict[str, list[CaseResult]] = {}
        for case in cases:
            if case.verdict in CRASHES or (exact and case.verdict != "ok"):
                found.setdefault(_what(case, dims), []).append(case)
        lines += [_cases(where, what, same) for what, same in found.items() if what not in known]
        known |= found.keys()
    lines += [markdown(finding) for finding in (*evidence.verify.findings, *evidence.export.findings)]
    lines += [markdown(finding) for finding in evidence.train.findings]
    yield "\n".join(f"- {line}" for line in lines) or "None was found."


# What a verdict says about a model, as a verb.
_VERBS = {
    "aborted": "aborts",
    "segfault": "crashes (segfault)",
    "timed out": "times out",
    "error": "fails",
    "out of memory": "runs out of memory",
}


def _what(case: CaseResult, dims: Mapping[str, Any]) -> str:
    """What a case shows, in words that are equal for cases of one kind."""
    sizes = ", ".join(f"{name} {size}" for name, size in case.sizes.items()) or "its fixed sizes"
    if any(not _within(size, dims.get(name) or {}) for name, size in case.sizes.items()):
        return f"{_VERBS.get(case.verdict, f'differs ({case.verdict})')} at {sizes}; the session refuses it"
    if case.verdict in CRASHES:
        return f"{_VERBS[case.verdict]} at {sizes}"
    return f"differs from the original ({case.verdict})"


def _cases(where: str, what: str, cases: Sequence[CaseResult]) -> str:
    """One sentence about the cases that show the same."""
    names = ", ".join(case.case for case in cases[:3]) + (f" and {len(cases) - 3} more" if len(cases) > 3 else "")
    kind = "probe" if all(case.probe for case in cases) else "case"
    return markdown(f"{where} {what} ({kind} {names})")


def _within(size: int, dim: Mapping[str, Any]) -> bool:
    low, high = dim.get("min"), dim.get("max")
    return (low is None or size >= low) and (high is None or size <= high)


def _inputs(inputs: Sequence[TensorSpec], params: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[str]:
    if about.get("preprocessing"):
        yield markdown(about["preprocessing"])
    declared = params.get("inputs") or {}
    rows = []
    for spec in inputs:
        values = (declared.get(spec.name) or {}).get("range")
        rows.append([spec.name, *_tensor(spec), f"{values[0]} to {values[1]}" if values else "", spec.about])
    yield table(["input", "type", "shape", "values", "meaning"], rows)


def _tensors(specs: Sequence[TensorSpec], params: Mapping[str, Any]) -> str:
    declared = params.get("outputs") or {}
    rows = [
        [spec.name, *_tensor(spec), spec.about or (declared.get(spec.name) or {}).get("about", "")] for spec in specs
    ]
    return table(["output", "type", "shape", "meaning"], rows)


def _tensor(spec: TensorSpec) -> tuple[str, str]:
    return spec.dtype, f"({', '.join(map(str, spec.shape))})"


def _reasons(evidence: Evidence) -> Iterator[str]:
    choice = _choice(evidence)
    if choice is not None:
        yield markdown(choice.reason)


def _hosts(evidence: Evidence, chosen: Measurement) -> Iterator[str]:
    machine = evidence.benchmark.machine
    if machine is not None:
        runtimes = ", ".join(f"{s.runtime} {s.version}" for s in evidence.benchmark.runtimes if s.usable)
        accelerators = ", ".join(machine.accelerators)
        yield markdown(
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb} GB"
            + (f", {accelerators}" if accelerators else "")
            + f" ({hardware.kind(machine)}); runtimes: {runtimes or 'none recorded'}"
        )
    rows = [
        [latency.size, figure(latency.p50_ms), figure(latency.p95_ms), figure(latency.throughput)]
        for latency in chosen.latencies
    ]
    yield table(["size", "p50_ms", "p95_ms", "items_per_s"], rows)
    yield from (markdown(finding) for finding in evidence.benchmark.findings)


def _data(evidence: Evidence) -> Iterator[str]:
    yield table(
        ["split", "samples", "sha256"],
        [[split.name, str(split.samples), split.file.sha256[:16]] for split in evidence.data.splits],
    )
