"""Labels and the quality function: what fails, and what is reported as a finding."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from onward.registry.cli.report_text import lines
from onward.registry.errors import UsageError
from onward.registry.evidence.reports import DataReport, TrainReport
from onward.stages.parity.labels import takes_labels
from tests.toy import SOURCE, through, toy_params, write_project

NO_LABEL = SOURCE.replace(', "label": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0).astype(np.int64)}', "}")
ACCURACY = 'return float((outputs["y"].argmax(1) == labels).mean())'


def with_quality(body: str, parameters: str = "outputs, labels", source: str = SOURCE) -> str:
    return source.replace(ACCURACY, body).replace("accuracy(outputs, labels)", f"accuracy({parameters})")


def test_quality_without_labels_fails_with_a_remedy(project: Path) -> None:
    write_project(project, source=NO_LABEL)
    reports = through("train", "data", "export", "verify")
    assert reports["data"].status == "failed"
    assert 'models.toy:samples("evaluation") returns no "label": add it there' in reports["data"].reason
    assert reports["train"].status == "failed"
    assert 'returns no "label"' in reports["train"].reason
    assert reports["train"].quality is None
    assert reports["verify"].status == "not attempted"


@pytest.mark.parametrize("source", [NO_LABEL, SOURCE], ids=["no label", "a label"])
def test_a_quality_function_of_outputs_alone_needs_no_labels(project: Path, source: str) -> None:
    write_project(project, source=with_quality('return -float(abs(outputs["y"]).mean())', "outputs", source))
    reports = through("train", "data")
    assert [report.status for report in reports.values()] == ["passed", "passed"], [r.reason for r in reports.values()]
    train: TrainReport = reports["train"]
    assert train.quality is not None
    assert train.findings == []


def test_only_evaluation_samples_need_labels(project: Path) -> None:
    source = SOURCE.replace(
        'return {"x": x, "label"', 'return {"x": x} if split == "calibration" else {"x": x, "label"'
    )
    write_project(project, source=source)
    assert {report.status for report in through("train", "data").values()} == {"passed"}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_non_finite_quality_fails(project: Path, value: str) -> None:
    write_project(project, source=with_quality(f'return float("{value}")'))
    report: TrainReport = through("train")["train"]
    assert report.status == "failed"
    assert f"models.toy:accuracy returned {value}; expected a finite number" in report.reason


def test_a_quality_function_that_raises_fails(project: Path) -> None:
    write_project(project, source=with_quality('return outputs["z"].mean()'))
    report: TrainReport = through("train")["train"]
    assert report.status == "failed"
    assert "models.toy.quality: models.toy:accuracy raised KeyError: 'z'" in report.reason


def test_a_quality_function_that_ignores_labels_is_a_finding(project: Path) -> None:
    write_project(project, source=with_quality("return 0.95"))
    report: TrainReport = through("train")["train"]
    assert report.status == "passed"
    assert [finding.partition(". ")[0] for finding in report.findings] == [
        "quality does not depend on the labels: with shuffled labels it is 0.95, too"
    ]
    assert any("found: quality does not depend on the labels" in line for line in lines(report))


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (ACCURACY, None),
        ("return 0.5", "np.ones(len(x), np.int64)"),
        ("assert (np.diff(labels) > 0).all()\n    return 0.5", "np.arange(len(x))"),
    ],
    ids=["it reads them", "labels that are all equal", "labels of one order only"],
)
def test_no_finding_is_reported_if_labels_matter_or_give_no_evidence(
    project: Path, body: str, label: str | None
) -> None:
    source = with_quality(body)
    if label:
        source = source.replace("(x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0).astype(np.int64)", label)
    write_project(project, source=source)
    report: TrainReport = through("train")["train"]
    assert (report.status, report.findings) == ("passed", [])


def test_the_data_stage_reports_no_labels_without_quality(project: Path) -> None:
    write_project(project, source=NO_LABEL, params=toy_params(quality=None))
    report: DataReport = through("data")["data"]
    assert report.status == "passed"
    assert "label" not in {expectation.column for expectation in report.expectations}


def test_the_signature_of_quality_determines_whether_it_takes_labels() -> None:
    def both(outputs: object, labels: object) -> None: ...
    def optional(outputs: object, labels: object = None) -> None: ...
    def alone(outputs: object) -> None: ...
    def keyword(outputs: object, *, threshold: float = 0.5) -> None: ...
    def anything(*arguments: object) -> None: ...
    def three(outputs: object, labels: object, more: object) -> None: ...

    assert [takes_labels(f, "") for f in (both, optional, anything)] == [True, True, True]
    assert [takes_labels(f, "") for f in (alone, keyword, functools.partial(both, labels=1))] == [False, False, False]
    assert takes_labels(np.add, "")
    with pytest.raises(UsageError, match=r"params\.yaml: q has the signature \(outputs.*labels.*more"):
        takes_labels(three, "params.yaml: q")


CONDITIONED = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kinds, self.head = torch.nn.Embedding(3, 6), torch.nn.Linear(6, 3)

    def forward(self, x, label):
        return self.head(x + self.kinds(label))

def net():
    return Net()

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    x = rng.standard_normal((96, 6)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, 3, 96), "target": (x[:, 0] > 0).astype(np.int64)}

def accuracy(outputs, labels):
    assert set(labels.tolist()) == {0, 1}
    return float((outputs["y"].argmax(1) == labels).mean())
"""


def conditioned(**changes: object) -> dict[str, object]:
    inputs = {
        "x": {"shape": ["batch", 6]},
        "label": {"dtype": "int64", "shape": ["batch"], "range": [0, 2]},
    }
    return toy_params(inputs=inputs, **changes)


def test_an_input_may_be_called_label_if_the_labels_have_another_name(project: Path) -> None:
    write_project(project, source=CONDITIONED, params=conditioned(label="target"))
    reports = through("train", "data", "export", "verify")
    assert {stage: report.reason for stage, report in reports.items()} == dict.fromkeys(reports, "")
    assert reports["train"].quality is not None


def test_an_input_called_label_is_not_taken_for_the_labels(project: Path) -> None:
    source = CONDITIONED.replace(', "target": (x[:, 0] > 0).astype(np.int64)', "")
    write_project(project, source=source, params=conditioned())
    reports = through("train", "data")
    for report in reports.values():
        assert "'label' is an input of the model" in report.reason
        assert "label: labels" in report.reason
    write_project(project, source=source, params=conditioned(quality=None))
    assert {report.status for report in through("train", "data", "export", "verify").values()} == {"passed"}


def test_a_surplus_array_beside_an_input_called_label_names_the_setting(project: Path) -> None:
    write_project(project, source=CONDITIONED, params=conditioned())
    assert "label: NAME in params.yaml" in through("data")["data"].reason
