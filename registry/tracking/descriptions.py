"""The descriptions that MLflow shows on the pages of the experiment, a run, a logged model and a registered model.

All text of models, users and other packages is escaped. Links are relative to MLflow's own page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onward.registry.evidence.headline import MEANINGS
from onward.registry.evidence.metric_names import HEADLINE
from onward.registry.evidence.records import Measurement
from onward.registry.evidence.reports import Evidence
from onward.registry.evidence.unmeasured import Unmeasured
from onward.registry.text import markdown
from onward.registry.tracking import views
from onward.registry.tracking.markdown_table import figure, linked, table
from onward.registry.tracking.metrics import RunRecord, sentence

# MLflow's limit for the descriptions of runs and experiments is that of their tags.
LONGEST = 5000
_MOST_ROWS = 12
_COLUMNS = ("variant", *HEADLINE)


@dataclass(frozen=True)
class ModelRow:
    """One row of the experiment's table: the newest measurement of a model.

    Attributes:
        model: the model's name.
        run_id: the parent run.
        status: "passed" or "failed".
        variant: the chosen variant; "" if there is none.
        version: the registered version; "" if there is none.
        reason: why nothing was registered; "" if something was.
        metrics: the metrics of the parent run.
    """

    model: str
    run_id: str
    status: str
    variant: str
    version: str
    reason: str
    metrics: Mapping[str, float]


def run_link(experiment: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"#/experiments/{experiment}/runs/{run_id}"


def version_link(registered: str, number: int | str) -> str:
    """The address of a version's page."""
    return f"#/models/{registered}/versions/{number}"


def logged_model_link(experiment: str, model_id: str) -> str:
    """The address of a logged model's page."""
    return f"#/experiments/{experiment}/models/{model_id}"


def experiment_page(experiment: str, rows: Iterable[ModelRow]) -> str:
    """The description of the experiment: the newest measurement of each model, with links to the comparisons.

    Args:
        experiment: the experiment's id.
        rows: the models.
    """
    lines = []
    for row in sorted(rows, key=lambda row: row.model):
        version = f"[version {row.version}]({version_link(row.model, row.version)})" if row.version else ""
        lines.append(
            [
                f"[{markdown(row.model)}]({run_link(experiment, row.run_id)})",
                markdown(row.status),
                markdown(row.variant or row.reason[:80]),
                *(figure(row.metrics.get(name)) for name in ("p50_ms", "speedup", "quality")),
                version,
                f"[compare]({views.link(experiment, views.key(row.model))})",
            ]
        )
    head = (
        f"**[All models, one row per measurement]({views.link(experiment, views.MODELS)})**, with columns and charts. "
        "*compare* opens the variants of a model's newest measurement: latency against quality, and p50 over the batch "
        "size."
    )
    header = ("model", "status", "chosen", "p50_ms", "speedup", "quality", "registered", "variants")
    text = "\n\n".join([head, linked(header, lines), "Columns: " + _meanings() + "."])
    while len(text) > LONGEST and lines:
        lines.pop()
        text = "\n\n".join([head, linked(header, lines), "More models: open the link above."])
    return text


def _meanings() -> str:
    return "; ".join(f"{markdown(name)}: {MEANINGS[name]}" for name in HEADLINE)


def parent_page(
    evidence: Evidence,
    experiment: str,
    reason: str,
    records: Sequence[RunRecord],
    children: Mapping[str, str],
    version: int | None,
    lost: Sequence[Unmeasured],
) -> str:
    """The description of a model's run: the choice and its reason, the measured variants, and the others.

    Args:
        evidence: the model's evidence.
        experiment: the experiment's id.
        reason: why nothing was registered; "" if something was.
        records: the measured variants.
        children: the run of each variant.
        version: the registered version, if any.
        lost: the variants that were not measured.
    """
    parts = [markdown(reason) if reason else markdown(sentence(evidence))]
    choice = next((choice for choice in evidence.select.choices if choice.chosen), None)
    links = [f"[compare the variants]({views.link(experiment, views.key(evidence.model))})"]
    if version is not None:
        links.insert(0, f"[{markdown(evidence.model)} version {version}]({version_link(evidence.model, version)})")
    if choice is not None and choice.reason and not reason:
        parts.append(f"Why: {markdown(choice.reason)}.")
    parts.append(" · ".join(links))
    ordered = sorted(records, key=lambda record: (not record.chosen, record.metrics.get("p50_ms", float("inf"))))
    rows = [
        [
            f"[{markdown(record.name)}]({run_link(experiment, children[record.name])})"
            + (" ★" if record.chosen else ""),
            *(figure(record.metrics.get(name)) for name in HEADLINE),
        ]
        for record in ordered[:_MOST_ROWS]
    ]
    parts.append(linked(_COLUMNS, rows))
    if lost:
        failed = sum(row.status == "failed" for row in lost)
        parts.append(
            f"{len(lost)} other variants were not measured ({failed} of them failed). "
            "The artifact `not_measured.json` lists each with its reason:"
        )
        first = sorted(lost, key=lambda row: row.status != "failed")[:_MOST_ROWS]
        parts.append(
            table(
                ["variant", "stage", "status", "reason"],
                [[row.variant, row.stage, row.status, _short(row.reason)] for row in first],
            )
        )
    return _fitting(parts)


def variant_page(record: RunRecord, experiment: str, parent: str, model: str, reason: str) -> str:
    """The description of a variant's run.

    Args:
        record: the variant.
        experiment: the experiment's id.
        parent: the id of the parent run.
        model: the model's name.
        reason: the reason for the variant's status, or for the choice.
    """
    state = "Chosen" if record.chosen else record.status.capitalize()
    parts = [
        f"{state}{': ' if reason else '.'}{markdown(reason)}",
        table(HEADLINE, [[figure(record.metrics.get(name)) for name in HEADLINE]]),
        f"[The measurement of {markdown(model)}]({run_link(experiment, parent)}) · "
        f"[compare the variants]({views.link(experiment, views.key(model))})",
    ]
    return _fitting(parts)


def logged_model_page(record: RunRecord, experiment: str, run_id: str, model: str, version: int | None) -> str:
    """The description of a variant's logged model.

    Args:
        record: the variant.
        experiment: the experiment's id.
        run_id: the variant's run.
        model: the model's name.
        version: the registered version of these files, if any.
    """
    registered = f" · [{markdown(model)} version {version}]({version_link(model, version)})" if version else ""
    return _fitting(
        [
            f"{markdown(record.name)} of {markdown(model)}{': ' if record.reason else ''}{markdown(record.reason)}",
            table(HEADLINE, [[figure(record.metrics.get(name)) for name in HEADLINE]]),
            f"[Run]({run_link(experiment, run_id)}){registered}",
        ]
    )


def registered_model_page(
    evidence: Evidence, experiment: str, description: str, run_id: str, version: int, environments: Sequence[str]
) -> str:
    """The description of a registered model: what it does, its newest version, and its environments.

    Args:
        evidence: the model's evidence.
        experiment: the experiment's id.
        description: `card.description` in params.yaml.
        run_id: the newest parent run.
        version: the version that this run registered or measured again.
        environments: the environments with a deployment log of the model.
    """
    name = evidence.model
    logs = [f"[{markdown(environment)}](#/models/{environment}.{name})" for environment in environments]
    return _fitting(
        [
            markdown(description) if description else f"{markdown(name)}, released by Onward.",
            f"Measured last: [version {version}]({version_link(name, version)}): {markdown(sentence(evidence))}",
            f"[Its run]({run_link(experiment, run_id)}) · "
            f"[compare the variants]({views.link(experiment, views.key(name))})",
            f"Deployment logs: {', '.join(logs)}." if logs else "It was not deployed yet: `onward promote`.",
        ]
    )


def has_quality(measurements: Iterable[Measurement]) -> bool:
    """Whether the model's own measure was computed for any variant."""
    return any(measurement.quality is not None for measurement in measurements)


def _short(reason: str) -> str:
    return reason if len(reason) <= 160 else f"{reason[:157]}..."


def _fitting(parts: Sequence[str]) -> str:
    """The paragraphs, up to MLflow's limit. Tables are cut after a row."""
    text = "\n\n".join(filter(None, parts))
    if len(text) <= LONGEST:
        return text
    return text[: LONGEST - 4].rpartition("\n")[0] + "\n..."
