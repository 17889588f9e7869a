"""Conclusions of the benchmark against peers. The measurement itself takes an hour and is run by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.peers import judging, making, writing
from benchmarks.peers.recipes import ARCHITECTURES, INSTALLED, OLIVE, OPTIMUM, PEERS, olive_config, recipes
from benchmarks.peers.results import EAGER, ONWARD, Entry, Hosts, Measured, Repeat, Result, Speed
from onward.stages.config.load import read
from tests.conftest import ROOT

PARAMS = ROOT / "benchmarks" / "peers" / "project" / "params.yaml"


def speeds(value: float, low: float | None = None, high: float | None = None) -> dict[str, Speed]:
    speed = Speed(value=value, low=value if low is None else low, high=value if high is None else high)
    return {"b1": speed, "all": speed}


def entry(name: str, to_plain: float, onward: float, peer: str = "", **more: Any) -> Entry:
    """An entry with latencies relative to the plain export: `to_plain` of its file, `onward` of the Onward choice."""
    return Entry(name=name, peer=peer, to_plain=speeds(to_plain), onward_to_it=speeds(onward / to_plain), **more)


def result(architecture: str = "minilm", onward: float = 0.5, peers: tuple[Entry, ...] = (), **more: Any) -> Result:
    entries = [
        entry("plain", 1.0, onward),
        entry(EAGER, 2.0, onward),
        entry(ONWARD, onward, onward, cosine=0.97, snr_db=31.0),
        *peers,
    ]
    return Result(
        architecture=architecture, sizes=["b1"], rounds=3, chosen="x (ONNX Runtime's defaults)", entries=entries, **more
    )


def found(measured: Measured, start: str) -> judging.Row:
    return next(row for row in judging.rows(measured) if row.figure.startswith(start))


def of(*results: Result) -> Measured:
    return Measured(results={one.architecture: one for one in results})


def test_the_better_peer_has_the_fastest_file_within_the_budget() -> None:
    olive = [entry("olive a", 0.7, 0.5, OLIVE), entry("olive b", 0.6, 0.5, OLIVE)]
    name, best = judging.best_peer(result(peers=(*olive, entry("optimum c", 0.65, 0.5, OPTIMUM))))
    assert name == best.name == "olive b"


def test_a_peer_that_breaks_the_budget_counts_as_the_plain_export() -> None:
    broken = [entry(f"{peer} a", 0.4, 0.5, peer, faults="too far off") for peer in PEERS]
    name, best = judging.best_peer(result(peers=tuple(broken)))
    assert best.name == "plain"
    assert "within the budget" in name


def test_a_failed_peer_counts_as_the_plain_export_and_beats_a_slower_one() -> None:
    peers = (Entry(name="olive a", peer=OLIVE, reason="died"), entry("optimum a", 3.0, 0.5, OPTIMUM))
    assert judging.best_peer(result(peers=peers))[1].name == "plain"


def test_minilm_must_be_faster_without_a_lower_cosine() -> None:
    figure = "MiniLM: latency over"
    fast = result(peers=(entry("olive a", 0.55, 0.5, OLIVE, cosine=0.968),))
    assert found(of(fast), figure).holds
    nearer = result(peers=(entry("olive a", 0.55, 0.5, OLIVE, cosine=0.975),))
    assert not found(of(nearer), figure).holds
    faster = result(peers=(entry("olive a", 0.45, 0.5, OLIVE, cosine=0.968),))
    assert not found(of(faster), figure).holds


def test_an_interval_that_reaches_one_counts_as_no_worse() -> None:
    peer = entry("olive a", 0.5, 0.5, OLIVE, cosine=0.9)
    peer.onward_to_it = speeds(1.01, 0.99, 1.03)
    assert found(of(result(peers=(peer,))), "MiniLM: latency over").holds


def test_eight_architectures_are_judged_only_when_all_are_measured() -> None:
    some = [result(name, 0.5) for name in list(ARCHITECTURES)[:7]]
    assert found(of(*some), "Eight").holds is None
    assert found(of(result("lstm", 1.5)), "Eight").holds is None
    assert found(of(*some, result(list(ARCHITECTURES)[7], 0.5)), "Eight").holds
    assert found(of(*(result(name, 0.9) for name in ARCHITECTURES)), "Eight").holds is False


def test_an_architecture_whose_whole_interval_exceeds_the_limit_is_named() -> None:
    slow = result("lstm", 1.1)
    row = found(of(slow, result("vit", 0.3)), "No architecture")
    assert row.holds is False
    assert ARCHITECTURES["lstm"] in row.measured
    assert ARCHITECTURES["vit"] not in row.measured


def test_a_fast_but_noisy_resnet_does_not_pass() -> None:
    figure = "ResNet-18: times as fast as the plain export, on the CPU"
    assert found(of(result("resnet18", 0.5)), figure).holds
    assert not found(of(result("resnet18", 0.6)), figure).holds
    noisy = result("resnet18", 0.5)
    noisy.entry(ONWARD).snr_db = 29.9
    assert not found(of(noisy), figure).holds


def test_the_search_time_is_compared_with_the_sum_of_two_olive_commands() -> None:
    stages = {"train": 999.0, "optimize": 40.0, "quantize": 40.0, "benchmark": 60.0, "select": 5.0}
    long = of(result(stages={**stages, "benchmark": 70.0}))
    short = of(result(stages=stages))
    assert found(short, "MiniLM: time of").holds is None
    short.olive_commands_s = long.olive_commands_s = 50.0
    assert found(short, "MiniLM: time of").holds
    assert not found(long, "MiniLM: time of").holds


def test_five_choices_within_three_percent_pass_and_four_fail() -> None:
    good = [Repeat(variant="x", behind=0.029)] * 5
    assert found(Measured(repeats=good), "Choice").holds
    assert found(Measured(repeats=good[:4]), "Choice").holds is None
    assert found(Measured(repeats=[*good[:3], Repeat(variant="y", behind=0.031)]), "Choice").holds is False


def test_missing_measurements_fail_with_a_reason() -> None:
    rows = judging.rows(Measured(not_measured={"minilm": "the weights could not be had"}))
    assert all(row.holds is None for row in rows)
    assert any(row.measured == "the weights could not be had" for row in rows)


def test_the_page_shows_a_row_a_figure_and_the_reason_of_a_failed_peer() -> None:
    measured = of(result(peers=(Entry(name="olive static", peer=OLIVE, reason="ValueError: no such thing"),)))
    page = writing.report(Hosts({"AVX2": measured}))
    assert "## AVX2" in page
    for row in judging.rows(measured):
        assert f"| {row.figure} | {row.wanted} |" in page
    assert "| Olive static |" in page
    assert "ValueError: no such thing" in page


def test_measurements_survive_a_round_trip_through_the_file() -> None:
    measured = of(result(peers=(entry("olive a", 0.5, 0.5, OLIVE),)))
    assert Measured.model_validate_json(measured.model_dump_json(exclude_defaults=True)) == measured


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_recipes_of_every_installed_peer_and_a_model_in_the_project(architecture: str) -> None:
    made = recipes(architecture)
    assert {recipe.peer for recipe in made} == set(INSTALLED)
    assert len({(recipe.peer, recipe.name) for recipe in made}) == len(made)
    assert architecture in yaml.safe_load(PARAMS.read_text())["models"]


def test_the_projects_params_are_valid() -> None:
    assert set(read(PARAMS).models) == set(ARCHITECTURES)


def test_olive_gets_calibration_samples_only_for_recipes_that_need_them() -> None:
    static = next(recipe for recipe in recipes("cnn") if recipe.calibrated)
    config = olive_config(static, "m.onnx", "data.py", "s.npz", "out")
    assert config["data_configs"][0]["load_dataset_config"]["path"] == "s.npz"
    dynamic = next(recipe for recipe in recipes("cnn") if recipe.peer == OLIVE and not recipe.calibrated)
    assert "data_configs" not in olive_config(dynamic, "m.onnx", "data.py", "s.npz", "out")


def test_the_hub_recipe_starts_from_the_pytorch_model() -> None:
    hub = next(recipe for recipe in recipes("minilm") if recipe.hub)
    assert olive_config(hub, "folder", "", "", "out")["input_model"]["type"] == "HfModel"


def test_a_log_is_summarized_in_one_line() -> None:
    log = "[INFO] running\nTraceback (most recent call last):\n  File x\nValueError: cannot read /a/b/model.onnx\nbye\n"
    assert making.last_words(log) == "ValueError: cannot read model.onnx"
    assert making.last_words("all is well") == ""


def _peer(tmp_path: Path, script: str) -> Path:
    """An interpreter in a folder in which `olive`, `optimum-cli` and `python` run `script`."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("olive", "optimum-cli", "python"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder / "python"


@pytest.fixture
def given(tmp_path: Path) -> making.Given:
    (tmp_path / "model.onnx").write_bytes(b"plain")
    np.savez(tmp_path / "samples.npz", x=np.zeros(2))
    return making.Given(tmp_path / "model.onnx", tmp_path / "samples.npz")


@pytest.mark.parametrize("peer", INSTALLED)
def test_a_recipe_runs_again_only_when_its_input_changes(tmp_path: Path, given: making.Given, peer: str) -> None:
    recipe = next(recipe for recipe in recipes("cnn") if recipe.peer == peer)
    python = _peer(tmp_path, f"mkdir -p made && echo x > made/model.onnx && echo run >> {tmp_path}/calls")
    first = making.make(recipe, given, python, tmp_path / "at")
    assert (first.reason, first.file) == ("", str(tmp_path / "at" / "made" / "model.onnx"))
    assert making.make(recipe, given, python, tmp_path / "at") == first
    given.plain.write_bytes(b"another")
    making.make(recipe, given, python, tmp_path / "at")
    assert (tmp_path / "calls").read_text().split() == ["run", "run"]


def test_a_failed_peer_leaves_its_reason_and_no_file(tmp_path: Path, given: making.Given) -> None:
    recipe = recipes("cnn")[0]
    outcome = making.make(recipe, given, _peer(tmp_path, "echo 'KeyError: 7' >&2; exit 1"), tmp_path / "at")
    assert (outcome.file, outcome.reason) == ("", "KeyError: 7")
    kept = json.loads((tmp_path / "at" / "outcome.json").read_text())
    assert kept["reason"] == "KeyError: 7"


def test_a_silent_peer_without_output_counts_as_failed(tmp_path: Path, given: making.Given) -> None:
    outcome = making.make(recipes("cnn")[0], given, _peer(tmp_path, "true"), tmp_path / "at")
    assert outcome.reason == "the command wrote no model"
