"""Replay: what a version answers on this host, judged here, whatever kind of host it was measured on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact.replay import Recorded, measure_again, replay, replay_in_subprocess
from onward.registry.evidence.records import Machine
from onward.registry.host import hardware
from onward.registry.operations import promotion
from tests.conftest import Command
from tests.store_factory import add_candidate, fresh_store, version_for_two_providers

RNG = np.random.default_rng(0)
X = RNG.integers(150, 255, (32, 64)).astype(np.float32)
WEIGHTS = RNG.integers(-128, 128, (64, 10)).astype(np.int8)
EXACT = X @ WEIGHTS.astype(np.float32)
OTHER_HOST = "sse2"


def quantized(path: Path, classes: int = 10) -> Path:
    """x float32[batch, 64] by int8 weights: exact in integers, and saturated where a CPU has no VNNI."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    stored = {"one": np.float32(1), "zero": np.uint8(0), "w": WEIGHTS[:, :classes]}
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def answers_here(folder: Path) -> Any:
    """What that graph answers on this host."""
    session = onnxruntime.InferenceSession(str(quantized(folder / "here.onnx")), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def bundled(folder: Path, there: Any = EXACT, reference: Any = EXACT, precision: str = "int8", **floors: Any) -> Path:
    """A version of that graph; `there` is what it answered where it was measured."""
    quantized(folder / "model.onnx", reference.shape[1])
    bundle = folder / "validation"
    bundle.mkdir()
    np.savez(bundle / "inputs.npz", x=X)
    np.savez(bundle / "outputs.npz", y=there.astype(np.float32))
    np.savez(bundle / "reference.npz", y=reference.astype(np.float32))
    (bundle / "tolerance.json").write_text(json.dumps({"rtol": 1e-3, "atol": 1e-5}))
    recorded = Recorded(main="cpu", precision={"cpu": precision}, **{"agreement": {"int8": 0.9}, **floors})
    (bundle / "recorded.json").write_text(recorded.model_dump_json())
    return folder


def test_an_int8_graph_is_held_to_the_originals_answers_and_not_to_another_cpus_numbers(tmp_path: Path) -> None:
    noisy = EXACT * (1 + 0.05 * RNG.standard_normal(EXACT.shape))
    met, detail = replay(bundled(tmp_path, there=noisy))
    assert met, detail
    assert "int8" in detail
    assert "dB of signal to noise" in detail
    assert "of 32 samples on CPUExecutionProvider" in detail


def test_a_float_graph_repeats_its_recorded_answers_within_the_tolerance(tmp_path: Path) -> None:
    met, detail = replay(bundled(tmp_path, there=EXACT + 100, precision="float32"))
    assert not met
    assert "output y is off by up to" in detail


def test_an_int8_graph_that_gives_other_answers_here_is_refused(tmp_path: Path) -> None:
    other = np.roll(EXACT, 3, axis=1)
    met, detail = replay(bundled(tmp_path, there=other, reference=other))
    assert not met
    assert "gives the original's answer to" in detail
    assert "at least 90.0% required" in detail


def test_no_better_is_wanted_here_than_it_was_where_it_was_measured(tmp_path: Path) -> None:
    reference = EXACT.copy()
    reference[:8] = np.roll(reference[:8], 3, axis=1)  # int8 gets a quarter of the samples wrong everywhere
    assert replay(bundled(tmp_path, reference=reference, agreement={"int8": 1.0}))[0]


@pytest.mark.parametrize("floor", [{"min_snr_db": 200.0}, {"min_cosine": 0.9999999}])
def test_the_budgets_fidelity_binds_here_too(tmp_path: Path, floor: dict[str, float]) -> None:
    reference = EXACT * (1 + 0.02 * RNG.standard_normal(EXACT.shape))
    met, detail = replay(bundled(tmp_path, reference=reference, **floor))
    assert not met
    assert f"{next(iter(floor.values())):g} required" in detail


@pytest.mark.parametrize(("noise", "met"), [(0.01, True), (0.1, False)])
def test_where_there_is_no_top1_the_noise_may_double_and_no_more(tmp_path: Path, noise: float, met: bool) -> None:
    """Here the noise against the reference is `noise`; where it was measured, it was a hundredth."""
    here = answers_here(tmp_path)[:, :1]
    reference = here * (1 + noise * np.where(np.arange(32) % 2, 1, -1)[:, None])
    found = replay(bundled(tmp_path / "version", there=reference * 1.01, reference=reference))
    assert found[0] is met, found[1]


def test_an_answer_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = bundled(tmp_path)
    quantized(folder / "model.onnx", 3)
    assert replay(folder) == (False, "output y is missing or has another shape (on CPUExecutionProvider)")


def test_every_winner_whose_provider_is_here_is_replayed_and_no_other(tmp_path: Path) -> None:
    version = version_for_two_providers(tmp_path)
    bundle = version / "validation"
    bundle.mkdir()
    x = np.ones((2, 4), np.float32)
    np.savez(bundle / "inputs.npz", x=x)
    np.savez(bundle / "outputs.npz", y=3 * x)  # of the main runtime, OpenVINO, which is not in this environment
    np.savez(bundle / "outputs-cpu.npz", y=2 * x)
    (bundle / "tolerance.json").write_text('{"rtol": 1e-3, "atol": 1e-5}')
    (bundle / "recorded.json").write_text(Recorded(main="openvino").model_dump_json())
    assert replay(version) == (True, "1 recorded output reproduced on CPUExecutionProvider")
    np.savez(bundle / "outputs-cpu.npz", y=3 * x)
    assert not replay(version)[0]


def test_a_version_of_an_older_release_is_replayed_by_its_tolerance(tmp_path: Path) -> None:
    folder = bundled(tmp_path / "version", there=answers_here(tmp_path))
    (folder / "validation" / "recorded.json").unlink()
    (folder / "validation" / "reference.npz").unlink()
    assert replay_in_subprocess(folder) == (True, "1 recorded output reproduced on CPUExecutionProvider")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({}, "no record of the kind of host that this was measured on"),
        ({"instruction_sets": OTHER_HOST}, f"no evidence from this kind of host .*; measured on {OTHER_HOST}"),
        ({"instruction_sets": f"{OTHER_HOST}; {hardware.kind(hardware.describe())}"}, "CPUExecutionProvider$"),
    ],
)
def test_it_is_said_where_evidence_from_this_kind_of_host_is_missing(
    tmp_path: Path, tags: dict[str, str], words: str
) -> None:
    met, detail = measure_again(bundled(tmp_path), tags)
    assert met, detail
    assert re.search(words, detail), detail


def test_check_and_promotion_measure_here_and_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    add_candidate(store, "cnn", instruction_sets=OTHER_HOST)
    promotion.promote("cnn", "staging", reason="because", store=store)
    code, out, err = onward("check", "cnn@staging")
    assert code == 0, err
    assert "no evidence from this kind of host" in out
    done = promotion.promote("cnn", "production", reason="because", store=store)
    replayed = next(gate for gate in done.entry.gates if gate.requirement == "replay")
    assert replayed.met
    assert f"measured on {OTHER_HOST}" in replayed.detail


def test_a_machine_without_a_known_instruction_set_is_of_a_kind_too() -> None:
    machine = Machine(cpu="x", instruction_sets=[], cores=1, memory_gb=1, system="Linux riscv64")
    assert hardware.kind(machine) == "Linux riscv64"
