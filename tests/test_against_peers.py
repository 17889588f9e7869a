"""What the benchmark against peers concludes from what it measured; measuring takes an hour, and is for people."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from benchmarks.peers import judging, making, writing
from benchmarks.peers.recipes import ARCHITECTURES, OLIVE, OPTIMUM, PEERS, olive_config, recipes
from benchmarks.peers.results import EAGER, ONWARD, Entry, Measured, Repeat, Result, Speed
from onward.stages.config.load import read
from tests.conftest import ROOT

PARAMS = ROOT / "benchmarks" / "peers" / "project" / "params.yaml"


def speeds(value: float, low: float | None = None, high: float | None = None) -> dict[str, Speed]:
    speed = Speed(value=value, low=value if low is None else low, high=value if high is None else high)
    return {"b1": speed, "all": speed}


def entry(name: str, to_plain: float, onward: float, peer: str = "", **more) -> Entry:
    """An entry whose file takes `to_plain` of the plain export's time, Onward's choice `onward` of it."""
    return Entry(name=name, peer=peer, to_plain=speeds(to_plain), onward_to_it=speeds(onward / to_plain), **more)


def result(architecture: str = "minilm", onward: float = 0.5, peers: tuple[Entry, ...] = (), **more) -> Result:
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


def test_the_better_peer_is_the_one_whose_fastest_file_within_the_budget_is_faster():
    olive = [entry("olive a", 0.7, 0.5, OLIVE), entry("olive b", 0.6, 0.5, OLIVE)]
    name, best = judging.best_peer(result(peers=(*olive, entry("optimum c", 0.65, 0.5, OPTIMUM))))
    assert name == best.name == "olive b"


def test_a_peer_that_breaks_the_budget_counts_as_the_plain_export():
    broken = [entry(f"{peer} a", 0.4, 0.5, peer, faults="too far off") for peer in PEERS]
    name, best = judging.best_peer(result(peers=tuple(broken)))
    assert best.name == "plain"
    assert "within the budget" in name


def test_a_peer_that_fails_counts_as_the_plain_export_and_beats_one_that_slows_the_model_down():
    peers = (Entry(name="olive a", peer=OLIVE, reason="died"), entry("optimum a", 3.0, 0.5, OPTIMUM))
    assert judging.best_peer(result(peers=peers))[1].name == "plain"


def test_minilm_wants_speed_at_no_lower_a_cosine():
    figure = "MiniLM: latency over"
    fast = result(peers=(entry("olive a", 0.55, 0.5, OLIVE, cosine=0.968),))
    assert found(of(fast), figure).holds
    nearer = result(peers=(entry("olive a", 0.55, 0.5, OLIVE, cosine=0.975),))
    assert not found(of(nearer), figure).holds
    faster = result(peers=(entry("olive a", 0.45, 0.5, OLIVE, cosine=0.968),))
    assert not found(of(faster), figure).holds


def test_an_interval_that_reaches_one_is_no_worse():
    peer = entry("olive a", 0.5, 0.5, OLIVE, cosine=0.9)
    peer.onward_to_it = speeds(1.01, 0.99, 1.03)
    assert found(of(result(peers=(peer,))), "MiniLM: latency over").holds


def test_eight_architectures_are_judged_when_all_eight_are_there():
    some = [result(name, 0.5) for name in list(ARCHITECTURES)[:7]]
    assert found(of(*some), "Eight").holds is None
    assert found(of(result("lstm", 1.5)), "Eight").holds is None
    assert found(of(*some, result(list(ARCHITECTURES)[7], 0.5)), "Eight").holds
    assert found(of(*(result(name, 0.9) for name in ARCHITECTURES)), "Eight").holds is False


def test_one_architecture_wholly_above_the_limit_is_named():
    slow = result("lstm", 1.1)
    row = found(of(slow, result("vit", 0.3)), "No architecture")
    assert row.holds is False
    assert ARCHITECTURES["lstm"] in row.measured
    assert ARCHITECTURES["vit"] not in row.measured


def test_a_fast_resnet_that_is_too_noisy_does_not_hold():
    figure = "ResNet-18: times as fast as the plain export, on the CPU"
    assert found(of(result("resnet18", 0.5)), figure).holds
    assert not found(of(result("resnet18", 0.6)), figure).holds
    noisy = result("resnet18", 0.5)
    noisy.entry(ONWARD).snr_db = 29.9
    assert not found(of(noisy), figure).holds


def test_the_search_is_compared_with_what_olives_two_commands_take():
    stages = {"train": 999.0, "optimize": 40.0, "quantize": 40.0, "benchmark": 60.0, "select": 5.0}
    long = of(result(stages={**stages, "benchmark": 70.0}))
    short = of(result(stages=stages))
    assert found(short, "MiniLM: time of").holds is None
    short.olive_commands_s = long.olive_commands_s = 50.0
    assert found(short, "MiniLM: time of").holds
    assert not found(long, "MiniLM: time of").holds


def test_five_choices_within_three_per_cent_hold_and_four_are_too_few():
    good = [Repeat(variant="x", behind=0.029)] * 5
    assert found(Measured(repeats=good), "Choice").holds
    assert found(Measured(repeats=good[:4]), "Choice").holds is None
    assert found(Measured(repeats=[*good[:3], Repeat(variant="y", behind=0.031)]), "Choice").holds is False


def test_nothing_measured_is_no_success_and_says_why():
    rows = judging.rows(Measured(not_measured={"minilm": "the weights could not be had"}))
    assert all(row.holds is None for row in rows)
    assert any(row.measured == "the weights could not be had" for row in rows)


def test_the_page_has_a_row_a_figure_and_the_reason_of_a_peer_that_made_nothing():
    measured = of(result(peers=(Entry(name="olive static", peer=OLIVE, reason="ValueError: no such thing"),)))
    page = writing.report(measured)
    for row in judging.rows(measured):
        assert f"| {row.figure} | {row.wanted} |" in page
    assert "| Olive static |" in page
    assert "ValueError: no such thing" in page


def test_what_was_measured_survives_the_file():
    measured = of(result(peers=(entry("olive a", 0.5, 0.5, OLIVE),)))
    assert Measured.model_validate_json(measured.model_dump_json(exclude_defaults=True)) == measured


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_recipes_of_both_peers_and_a_model_in_the_project(architecture):
    made = recipes(architecture)
    assert {recipe.peer for recipe in made} == set(PEERS)
    assert len({(recipe.peer, recipe.name) for recipe in made}) == len(made)
    assert architecture in yaml.safe_load(PARAMS.read_text())["models"]


def test_the_projects_params_are_valid():
    assert set(read(PARAMS).models) == set(ARCHITECTURES)


def test_olive_is_given_calibration_samples_only_where_a_recipe_wants_them():
    static = next(recipe for recipe in recipes("cnn") if recipe.calibrated)
    config = olive_config(static, "m.onnx", "data.py", "s.npz", "out")
    assert config["data_configs"][0]["load_dataset_config"]["path"] == "s.npz"
    dynamic = next(recipe for recipe in recipes("cnn") if recipe.peer == OLIVE and not recipe.calibrated)
    assert "data_configs" not in olive_config(dynamic, "m.onnx", "data.py", "s.npz", "out")


def test_the_hub_recipe_starts_from_the_pytorch_model():
    hub = next(recipe for recipe in recipes("minilm") if recipe.hub)
    assert olive_config(hub, "folder", "", "", "out")["input_model"]["type"] == "HfModel"


def test_a_log_says_in_one_line_what_went_wrong():
    log = "[INFO] running\nTraceback (most recent call last):\n  File x\nValueError: cannot read /a/b/model.onnx\nbye\n"
    assert making.last_words(log) == "ValueError: cannot read model.onnx"
    assert making.last_words("all is well") == ""


def _peer(tmp_path, script: str):
    """An interpreter beside which `olive` and `optimum-cli` are `script`."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("olive", "optimum-cli"):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder / "python"


@pytest.fixture
def given(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"plain")
    np.savez(tmp_path / "samples.npz", x=np.zeros(2))
    return making.Given(tmp_path / "model.onnx", tmp_path / "samples.npz")


@pytest.mark.parametrize("peer", PEERS)
def test_a_recipe_is_made_once_until_its_input_changes(tmp_path, given, peer):
    recipe = next(recipe for recipe in recipes("cnn") if recipe.peer == peer)
    python = _peer(tmp_path, f"mkdir -p made && echo x > made/model.onnx && echo run >> {tmp_path}/calls")
    first = making.make(recipe, given, python, tmp_path / "at")
    assert (first.reason, first.file) == ("", str(tmp_path / "at" / "made" / "model.onnx"))
    assert making.make(recipe, given, python, tmp_path / "at") == first
    given.plain.write_bytes(b"another")
    making.make(recipe, given, python, tmp_path / "at")
    assert (tmp_path / "calls").read_text().split() == ["run", "run"]


def test_a_peer_that_fails_leaves_its_reason_and_no_file(tmp_path, given):
    recipe = recipes("cnn")[0]
    outcome = making.make(recipe, given, _peer(tmp_path, "echo 'KeyError: 7' >&2; exit 1"), tmp_path / "at")
    assert (outcome.file, outcome.reason) == ("", "KeyError: 7")
    kept = json.loads((tmp_path / "at" / "outcome.json").read_text())
    assert kept["reason"] == "KeyError: 7"


def test_a_peer_that_says_nothing_and_writes_nothing_has_made_no_model(tmp_path, given):
    outcome = making.make(recipes("cnn")[0], given, _peer(tmp_path, "true"), tmp_path / "at")
    assert outcome.reason == "the command wrote no model"
