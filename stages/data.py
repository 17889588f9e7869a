"""Builds the evaluation and calibration sets, and checks both with Great Expectations.

The expectations apply to a table with one row per sample. For each input it has the dtype, the shape, the lowest and
highest value, and the number of NaN or infinite values; for the label, its value and its share of the split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.records import Expectation, FileDigest, Split
from onward.registry.evidence.reports import DataReport
from onward.registry.gates import suites
from onward.stages import command, samples
from onward.stages.config import paths
from onward.stages.config.layout import Layout
from onward.stages.config.load import section
from onward.stages.config.schema import ModelParams
from onward.stages.parity.labels import labels_of, without_labels
from onward.stages.parity.sequences import has_steps, steps_of

if TYPE_CHECKING:
    import pandas as pd

Arrays = dict[str, npt.NDArray[Any]]

SPLITS = ("evaluation", "calibration")

# A split has at least this many sequences, however long they are, because the steps of one resemble each other.
FEW_SEQUENCES = 8

# Labels with more distinct values are quantities, for which balance has no meaning.
MOST_CLASSES = 1000


def data(model: str, folder: Path) -> DataReport:
    """Build the evaluation and calibration sets of a model and check them with Great Expectations.

    Writes build/MODEL/data/: evaluation.npz, calibration.npz and report.json. A failed expectation fails the stage; the
    report lists the expected and observed values.
    """
    settings = section(model, "data")
    arrays_by_split = {name: samples.load(settings, name, f"models.{model}") for name in SPLITS}
    splits = []
    for name, arrays in arrays_by_split.items():
        path = folder / f"{name}.npz"
        _save(path, arrays)
        count = Layout.of(settings).count(arrays)
        splits.append(Split(name=name, samples=count, file=FileDigest.of(path, folder)))
    own = _own_suite(model, settings)
    results = [
        *_labelled(model, settings, arrays_by_split["evaluation"]),
        _disjoint(arrays_by_split, Layout.of(settings).sampled, settings.data.max_shared),
    ]
    for name, arrays in arrays_by_split.items():
        frame = table(settings, arrays)
        results += [_with_remedy(found) for found in _judge(name, frame, standard_suite(settings, arrays))]
        results += _judge(name, frame, own) if own else []
    failed = [result for result in results if not result.success]
    reason = ""
    if failed:
        first = failed[0]
        column = f" of {first.column}" if first.column else ""
        reason = (
            f"{len(failed)} of {len(results)} expectations failed; "
            f"{first.split}: {first.expectation}{column}: {first.observed}"
        )
    return DataReport(
        model=model, status="failed" if failed else "passed", reason=reason, splits=splits, expectations=results
    )


def table(settings: ModelParams, arrays: Arrays) -> pd.DataFrame:
    """Make the table that expectations apply to.

    Args:
        settings: The model's settings.
        arrays: Inputs, and the labels if there are any; samples are on axis 0.

    Returns:
        One row per sample. The columns are `<input>.dtype`, `<input>.shape`, `<input>.min`, `<input>.max`,
        `<input>.not_finite`, and for labels of shape [n] also `label` and `label.share`.
    """
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in (name for name in Layout.of(settings).sampled if name in arrays):
        values = arrays[name]
        flat = values.reshape(len(values), -1)
        finite = np.isfinite(flat) if values.dtype.kind == "f" else np.ones_like(flat, dtype=bool)
        columns[f"{name}.dtype"] = [str(values.dtype)] * len(values)
        columns[f"{name}.shape"] = ["x".join(map(str, values.shape[1:]))] * len(values)
        columns[f"{name}.min"] = np.where(finite, flat, np.inf).min(axis=1, initial=np.inf)
        columns[f"{name}.max"] = np.where(finite, flat, -np.inf).max(axis=1, initial=-np.inf)
        columns[f"{name}.not_finite"] = (~finite).sum(axis=1)
    labels = labels_of(settings, arrays)
    if labels is not None and labels.ndim == 1:
        columns["label"] = labels
        _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        columns["label.share"] = counts[inverse] / max(1, len(labels))
    return pd.DataFrame(columns)


def standard_suite(settings: ModelParams, arrays: Arrays) -> list[dict[str, Any]]:
    """List the expectations for every model: types, shapes, ranges, no NaN, label balance, minimum size.

    Args:
        settings: The model's settings.
        arrays: As for `table`.

    Returns:
        Expectations with the keys `type` and `kwargs`, in Great Expectations' form.
    """

    def expect(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"type": f"expect_{kind}", "kwargs": kwargs}

    steps = has_steps(settings, arrays)
    suite = [expect("table_row_count_to_be_between", min_value=_least_rows(settings, arrays))]
    for name in (name for name in Layout.of(settings).sampled if name in arrays):
        spec = settings.inputs[name]
        begin = 2 if steps and name not in settings.states else 1
        own = arrays[name].shape[begin:]
        declared = [size for axis, size in enumerate(spec.shape) if axis != spec.samples_on]
        fitting = len(own) == len(declared) and all(
            isinstance(want, str) or want == got for want, got in zip(declared, own, strict=True)
        )
        wanted = "x".join(map(str, [*arrays[name].shape[1:begin], *(own if fitting else declared)]))
        suite.append(expect("column_values_to_be_in_set", column=f"{name}.dtype", value_set=[spec.dtype]))
        suite.append(expect("column_values_to_be_in_set", column=f"{name}.shape", value_set=[wanted]))
        suite.append(expect("column_max_to_be_between", column=f"{name}.not_finite", max_value=0))
        low, high = spec.range if spec.range is not None else (None, None)
        if low is not None:
            suite.append(expect("column_min_to_be_between", column=f"{name}.min", min_value=low))
            suite.append(expect("column_max_to_be_between", column=f"{name}.max", max_value=high))
    labels = labels_of(settings, arrays)
    if labels is not None and labels.ndim == 1:
        suite.append(expect("column_values_to_not_be_null", column="label"))
        classes = len(np.unique(labels))
        if labels.dtype.kind in "iub" and classes <= MOST_CLASSES:
            suite.append(expect("column_unique_value_count_to_be_between", column="label", min_value=2))
            share = settings.data.max_label_share
            suite.append(expect("column_max_to_be_between", column="label.share", max_value=share))
    return suite


def _least_rows(settings: ModelParams, arrays: Arrays) -> int:
    """The number of rows that a split needs. Every step of a sequence counts as a sample."""
    least = settings.data.min_samples
    count = steps_of(settings, arrays)
    return min(least, max(FEW_SEQUENCES, -(-least // count))) if count else least


def _save(path: Path, arrays: Arrays) -> None:
    # The bytes depend on the arrays alone: NumPy sets the date of every member of an .npz to 1980.
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _labelled(model: str, settings: ModelParams, evaluation: Arrays) -> list[Expectation]:
    """Expect the labels that `quality` takes; empty without `quality`."""
    if settings.quality is None:
        return []
    missing = without_labels(settings, evaluation, f"models.{model}")
    return [
        Expectation(
            split="evaluation",
            expectation="samples have the labels that quality takes",
            column="label",
            success=not missing,
            observed=missing or ("quality takes no labels" if labels_of(settings, evaluation) is None else "labels"),
        )
    ]


def _disjoint(arrays_by_split: dict[str, Arrays], sampled: list[str], most: float) -> Expectation:
    """Expect that at most the share `most` of the evaluation samples is in the calibration split, too.

    Samples are equal if all inputs are equal byte for byte. Equal samples within a split count once.
    """
    rows = {}
    for split, arrays in arrays_by_split.items():
        inputs = [np.ascontiguousarray(arrays[name]) for name in sampled if name in arrays]
        rows[split] = {b"".join(values[i].tobytes() for values in inputs) for i in range(len(inputs[0]))}
    shared = len(rows["evaluation"] & rows["calibration"])
    share = shared / max(1, len(rows["evaluation"]))
    return Expectation(
        split="both",
        expectation=f"splits share at most {most:.0%} of the evaluation samples" if most else "splits share no sample",
        success=share <= most,
        observed=f"{shared} of {len(rows['evaluation'])} evaluation samples are in both ({share:.1%}); "
        f"data.max_shared allows {most:g}: raise it if only few distinct inputs are possible",
    )


def _own_suite(model: str, settings: ModelParams) -> list[dict[str, Any]]:
    if settings.data.suite is None:
        return []
    path = settings.data.suite
    return suites.read(paths.root() / path, f"params.yaml: models.{model}.data.suite: {path}")


def _judge(split: str, frame: pd.DataFrame, suite: list[dict[str, Any]]) -> list[Expectation]:
    """Apply the expectations of a suite to a table of samples."""
    found = []
    for result in suites.validate(frame, suite, "data.suite").results:
        config = result.expectation_config
        assert config is not None
        seen = result.result.get("observed_value")
        if seen is None and result.result.get("unexpected_count") is not None:
            few = result.result.get("partial_unexpected_list", [])[:3]
            seen = f"{result.result['unexpected_count']} unexpected, e.g. {few}"
        if result.exception_info.get("raised_exception"):
            seen = str(result.exception_info.get("exception_message", "the expectation could not be computed"))
        found.append(
            Expectation(
                split=split,
                expectation=_words(config.type, config.kwargs),
                column=str(config.kwargs.get("column", "")),
                success=bool(result.success),
                observed=str(seen),
            )
        )
    return found


# By the end of an expectation's column, or by its type without a column: the setting that decides, and what to do.
_REMEDIES = {
    "expect_table_row_count_to_be_between": "return more samples, or lower data.min_samples",
    "label.share": "balance the samples, or raise data.max_label_share",
    ".min": "correct the samples, or the input's range in params.yaml",
    ".max": "correct the samples, or the input's range in params.yaml",
    ".dtype": "correct the samples, or the input's dtype in params.yaml",
    ".shape": "correct the samples, or the input's shape in params.yaml",
}


def _with_remedy(found: Expectation) -> Expectation:
    """Add the setting that decides to a failed expectation of the standard suite."""
    place = found.column or found.expectation
    remedy = "" if found.success else next((text for end, text in _REMEDIES.items() if _is_at(place, end)), "")
    return found.model_copy(update={"observed": f"{found.observed}: {remedy}"}) if remedy else found


def _is_at(place: str, end: str) -> bool:
    return place.endswith(end) or place.startswith(f"{end} ")


def _words(kind: str, kwargs: Mapping[str, Any]) -> str:
    """An expectation with its arguments, except the column."""
    shown = {k: v for k, v in kwargs.items() if k not in ("column", "batch_id") and v is not None}
    return kind + (f" {json.dumps(shown, sort_keys=True, default=str)}" if shown else "")


if __name__ == "__main__":
    command.run("data", data)
