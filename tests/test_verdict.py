"""The final table: every model has a row, figures have intervals, and the exit code is the overall verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onward.registry.artifact.serving_plan import of_winners
from onward.registry.evidence.records import FileDigest, Ratio, RuntimeState
from onward.registry.evidence.reports import BenchmarkReport, PublishReport, SelectReport, load, save
from onward.registry.evidence.uncertainty import speed
from onward.stages import verdict
from tests.evidence_factory import make_publication
from tests.toy import toy_params, write_project, write_settings


def reported(root: Path, model: str, published: bool = True, findings: tuple[str, ...] = ()) -> None:
    """Every report of a model that passed."""
    evidence = make_publication(root, model).evidence
    evidence.train.weights = FileDigest(path="model.safetensors", sha256="0", size_bytes=1)
    evidence.train.findings = list(findings)
    for stage in ("train", "data", "export", "verify", "optimize", "quantize", "benchmark", "select"):
        save(getattr(evidence, stage), root / "build" / model / stage / "report.json")
    if published:
        report = PublishReport(model=model, status="passed", version=3)
        save(report, root / "build" / model / "publish" / "report.json")


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = 0
    try:
        verdict.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().out


def of_models(project: Path, *models: str) -> None:
    params = toy_params()
    params["models"] = dict.fromkeys(models, params["models"]["toy"])
    write_project(project, params=params)
    write_settings()


def test_a_passed_model_shows_its_ratios_with_intervals(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_models(project, "good")
    reported(project, "good", findings=("left out total_ops",))
    code, out = printed(capsys)
    assert code == 0
    row = next(line for line in out.splitlines() if "good" in line)
    assert "1.25 ±1%" in row
    assert "2.50 ±1%" in row
    assert "found: good: train: left out total_ops" in out


def test_every_model_has_a_row_even_if_it_failed_or_never_ran(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_models(project, "good", "bad", "new", "unpublished")
    reported(project, "good")
    reported(project, "unpublished", published=False)
    failed = make_publication(project, "bad", failed="no translation").evidence.export
    save(failed, project / "build" / "bad" / "export" / "report.json")
    code, out = printed(capsys)
    assert code == 1
    states = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in out.splitlines() if "│" in line}
    assert states == {"good": "passed", "bad": "failed", "new": "not run", "unpublished": "not run"}
    assert "failed: bad: export: no translation" in out
    assert "not run: new: train has no report: run `dvc repro`" in out
    assert "not run: unpublished: publish has no report: run `dvc repro`" in out


def test_the_fastest_runtime_is_shown_with_its_worst_size_and_missing_runtimes_with_their_remedy(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    of_models(project, "good")
    reported(project, "good")
    path = project / "build" / "good"
    benchmark = load(BenchmarkReport, path / "benchmark" / "report.json")
    select = load(SelectReport, path / "select" / "report.json")
    here = benchmark.measurements[1]
    ratio = Ratio(value=0.25, low=0.249, high=0.251)
    ratios = {"b1": Ratio(value=0.5, low=0.49, high=0.51), "b8": Ratio(value=0.125, low=0.12, high=0.13), "all": ratio}
    there = {"variant": "plain-bf16", "runtime": "openvino-native", "host_ratios": ratios}
    benchmark.measurements.append(here.model_copy(update=there))
    for measurement in benchmark.measurements[:2]:
        measurement.host_ratios = measurement.ratios
    benchmark.runtimes = [
        RuntimeState(runtime="cpu", usable=True, version="1.32.0"),
        RuntimeState(runtime="openvino-native", usable=True, version="2026.4.1"),
        RuntimeState(runtime="openvino", usable=False, reason="not installed: onward runtimes install openvino"),
    ]
    chosen = select.choices[1]
    select.choices.append(chosen.model_copy(update={"variant": "plain-bf16", "runtime": "openvino-native"}))
    winner = select.winners[0]
    winner.host_ratio = here.ratios["all"]
    faster = {"variant": "plain-bf16", "runtime": "openvino-native", "host_ratio": ratio, "p50_ms": 9.0}
    select.winners.append(winner.model_copy(update=faster))
    save(benchmark, path / "benchmark" / "report.json")
    select.choices[0].tied = True
    save(select, path / "select" / "report.json")
    code, out = printed(capsys)
    assert code == 0
    assert "tied: good: fast on cpu with plain: their intervals overlap" in out
    row = [cell.strip() for cell in next(line for line in out.splitlines() if "good" in line).split("│")[1:-1]]
    assert row[1] == "passed"
    assert row[3:6] == ["4.00 ±1%", "2.00 b1", "8.00 ±1%"]
    assert "plain-bf16" in out
    assert "measured: cpu 1.32.0, openvino-native 2026.4.1" in out
    assert "not measured: openvino: not installed: onward runtimes install openvino" in out
    assert list(of_winners(select.winners, project)[0].root) == ["openvino-native", "cpu"]


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(value=0.8, low=0.78, high=0.82), "1.25 ±3%"),
        (Ratio(value=1.0, low=1.0, high=1.0), "1.00"),
        (Ratio(value=0.05, low=0.0499, high=0.0501), "20.0 ±1%"),
        (Ratio(value=1 / 441, low=1 / 900, high=1 / 200), "about 440 (200 to 900)"),
        (Ratio(value=0.25, low=1 / 9, high=0.5), "about 4 (2 to 9)"),
        (Ratio(value=0.25, low=0.01, high=0.5), "too noisy to say"),
        (Ratio(value=0.8, low=0.6, high=1.0), "too noisy to say"),
    ],
)
def test_a_wide_interval_is_written_out(ratio: Ratio, words: str) -> None:
    assert speed(ratio) == words


@pytest.mark.parametrize("width", [60, 80, 130])
def test_the_table_fits_by_dropping_columns_and_cuts_no_name(capsys: pytest.CaptureFixture[str], width: int) -> None:
    name, variant = "a-model-with-a-long-name", "ort_fusions-int8-static (openvino)"
    row = [name, "passed", variant, "1.25 ±1%", "1.00 b1", "2.50 ±1%", "0.9000", "+0.0000", "3"]
    dropped = verdict.print_table([row], width)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any(name in line for line in lines)
    shown = "chosen" not in dropped
    parts = ("ort_fusions-", "int8-", "static", "(openvino)")
    assert all(any(part in line for line in lines) for part in parts) == shown
    assert bool(dropped) == (width < 130)
    assert "version" not in dropped


def test_the_verdict_as_json_has_all_models(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_models(project, "good", "new")
    reported(project, "good")
    with pytest.raises(SystemExit):
        verdict.main(as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    good, new = document["models"]
    assert (good["verdict"], good["variant"], good["version"]) == ("passed", "fast", 3)
    assert good["speedup"]["value"] == pytest.approx(1.25)
    assert new["faults"] == ["not run: new: train has no report: run `dvc repro`"]
