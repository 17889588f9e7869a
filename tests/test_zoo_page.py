"""Conclusions of the benchmark of real models. The measurement itself takes hours and is run by hand."""

from __future__ import annotations

from pathlib import Path

import yaml

from benchmarks.peers import fetching, zoo_page
from benchmarks.peers.recipes import OPENVINO
from benchmarks.peers.results import EAGER, ONWARD, Entry, Hosts, Measured, Result, Speed, kind_of
from benchmarks.peers.zoo_page import MODELS
from onward.stages.config.load import read


def _speeds(value: float) -> dict[str, Speed]:
    speed = Speed(value=value, low=value, high=value)
    return {"b1": speed, "all": speed}


def _result(name: str, onward: float, peer: float = 1.0, changed: float = 0.0, seconds: float = 60) -> Result:
    entries = [
        Entry(name=of, peer=whose, to_plain=_speeds(speed), onward_to_it=_speeds(onward / speed))
        for of, whose, speed in (
            ("plain", "", 1.0),
            (EAGER, "", 2.0),
            (f"{ONWARD} on openvino-native", "", onward),
            ("openvino default", OPENVINO, peer),
        )
    ]
    best = f"{ONWARD} on openvino-native"
    return Result(
        architecture=name, sizes=["b1"], rounds=3, chosen="x", best=best, changed=changed, entries=entries,
        stages={"verify": seconds},
    )  # fmt: skip


def _holds(kind: str = "AVX2", *results: Result) -> dict[str, bool | None]:
    measured = Measured(results={one.architecture: one for one in results})
    return {row.figure.split(",")[0]: row.holds for row in zoo_page.rows(kind, measured)}


def test_all_targets_hold_when_every_model_is_fast_and_right() -> None:
    assert set(_holds("AVX2", *(_result(name, 0.5) for name in MODELS)).values()) == {True}


def test_an_amx_host_must_be_three_times_as_fast() -> None:
    figure = "Times as fast as the plain export on the CPU provider"
    assert _holds("AMX", *(_result(name, 0.5) for name in MODELS))[figure] is False
    assert _holds("AMX", *(_result(name, 0.3) for name in MODELS))[figure] is True


def test_one_model_that_misses_a_target_is_named() -> None:
    others = [_result(name, 0.4) for name in MODELS if name != "crepe"]
    for worse, figure, words in (
        (_result("crepe", 1.1), "Slower than the plain export", "crepe 1.100"),
        (_result("crepe", 0.4, peer=0.3), "No model has a whole interval above", "crepe (1.333"),
        (_result("crepe", 0.4, changed=0.02), "Task outcomes that change", "2.00% (crepe)"),
        (_result("crepe", 0.4, seconds=601), "All stages of a model", "601 s (crepe)"),
    ):
        measured = Measured(results={one.architecture: one for one in (*others, worse)})
        row = next(row for row in zoo_page.rows("AVX2", measured) if row.figure == figure)
        assert (row.holds, words in row.measured) == (False, True), row


def test_a_model_that_does_not_pass_is_named_with_its_reason() -> None:
    measured = Measured(results={"magika": _result("magika", 0.5)}, not_measured={"crepe": "verify failed: because"})
    first = next(iter(zoo_page.rows("AVX2", measured)))
    assert (first.holds, "crepe: verify failed: because" in first.measured) == (False, True)
    assert "crepe: verify failed: because" in zoo_page.page(Hosts({"AVX2": measured}))


def test_hosts_are_told_apart_by_their_most_capable_instruction_set() -> None:
    assert [kind_of(sets) for sets in (["avx2"], ["avx2", "avx512_vnni"], ["avx2", "amx_int8"], [])] == [
        "AVX2", "AVX512-VNNI", "AMX", "other",
    ]  # fmt: skip


def test_every_model_has_a_package_a_module_and_valid_params() -> None:
    packages = yaml.safe_load((fetching.TEMPLATE / "packages.yaml").read_text())
    assert set(packages) == set(MODELS) == set(read(fetching.TEMPLATE / "params.yaml").models)
    for name in MODELS:
        assert (Path(fetching.TEMPLATE) / "models" / f"{name}.py").is_file()
