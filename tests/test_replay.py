"""Replay judges the outputs of a version on this host, even if it was measured on another kind of host."""

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
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, fresh_store, version_for_two_providers

RNG = np.random.default_rng(0)
X = RNG.integers(150, 255, (32, 64)).astype(np.float32)
WEIGHTS = RNG.integers(-128, 128, (64, 10)).astype(np.int8)
EXACT = X @ WEIGHTS.astype(np.float32)
OTHER_HOST = "sse2"


def quantized(path: Path, classes: int = 10) -> Path:
    """A product of x float32[batch, 64] and int8 weights: exact in integers, but saturated on CPUs without VNNI."""
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
    """The outputs of that graph on this host."""
    session = onnxruntime.InferenceSession(str(quantized(folder / "here.onnx")), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def bundled(folder: Path, there: Any = EXACT, reference: Any = EXACT, precision: str = "int8", **floors: Any) -> Path:
    """A version of that graph; `there` are its outputs on the measuring host."""
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


def test_an_int8_graph_is_compared_with_the_original_and_not_with_another_cpu(tmp_path: Path) -> None:
    noisy = EXACT * (1 + 0.05 * RNG.standard_normal(EXACT.shape))
    met, detail = replay(bundled(tmp_path, there=noisy))
    assert met, detail
    assert "int8" in detail
    assert "dB of signal to noise" in detail
    assert "of 32 samples on CPUExecutionProvider" in detail


def test_a_float_graph_reproduces_its_recorded_outputs_within_the_tolerance(tmp_path: Path) -> None:
    met, detail = replay(bundled(tmp_path, there=EXACT + 100, precision="float32"))
    assert not met
    assert "output y is off by up to" in detail


def test_an_int8_graph_with_other_outputs_on_this_host_is_rejected(tmp_path: Path) -> None:
    other = np.roll(EXACT, 3, axis=1)
    met, detail = replay(bundled(tmp_path, there=other, reference=other))
    assert not met
    assert "gives the original's answer to" in detail
    assert "at least 90.0% required" in detail


def test_a_host_need_not_be_better_than_the_measuring_host(tmp_path: Path) -> None:
    reference = EXACT.copy()
    reference[:8] = np.roll(reference[:8], 3, axis=1)  # int8 fails for a quarter of the samples on every host
    assert replay(bundled(tmp_path, reference=reference, agreement={"int8": 1.0}))[0]


@pytest.mark.parametrize("floor", [{"min_snr_db": 200.0}, {"min_cosine": 0.9999999}])
def test_fidelity_floors_of_the_budget_apply_to_replay(tmp_path: Path, floor: dict[str, Any]) -> None:
    reference = EXACT * (1 + 0.02 * RNG.standard_normal(EXACT.shape))
    met, detail = replay(bundled(tmp_path, reference=reference, **floor))
    assert not met
    assert f"{next(iter(floor.values())):g} required" in detail


@pytest.mark.parametrize(("noise", "met"), [(0.01, True), (0.1, False)])
def test_without_top1_the_noise_may_at_most_double(tmp_path: Path, noise: float, met: bool) -> None:
    """The noise against the reference is `noise` on this host and was 0.01 on the measuring host."""
    here = answers_here(tmp_path)[:, :1]
    reference = here * (1 + noise * np.where(np.arange(32) % 2, 1, -1)[:, None])
    found = replay(bundled(tmp_path / "version", there=reference * 1.01, reference=reference))
    assert found[0] is met, found[1]


def test_an_output_of_another_shape_is_rejected(tmp_path: Path) -> None:
    folder = bundled(tmp_path)
    quantized(folder / "model.onnx", 3)
    assert replay(folder) == (False, "output y is missing or has another shape (on CPUExecutionProvider)")


def test_only_winners_of_available_providers_are_replayed(tmp_path: Path) -> None:
    version = version_for_two_providers(tmp_path)
    bundle = version / "validation"
    bundle.mkdir()
    x = np.ones((2, 4), np.float32)
    np.savez(bundle / "inputs.npz", x=x)
    np.savez(bundle / "outputs.npz", y=3 * x)  # the main runtime is OpenVINO, which is missing from this environment
    np.savez(bundle / "outputs-cpu.npz", y=2 * x)
    (bundle / "tolerance.json").write_text('{"rtol": 1e-3, "atol": 1e-5}')
    (bundle / "recorded.json").write_text(Recorded(main="openvino").model_dump_json())
    assert replay(version) == (True, "1 recorded output reproduced on CPUExecutionProvider")
    np.savez(bundle / "outputs-cpu.npz", y=3 * x)
    assert not replay(version)[0]


def test_a_version_of_an_older_release_is_replayed_with_its_tolerance(tmp_path: Path) -> None:
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
def test_missing_evidence_for_this_host_kind_is_reported(tmp_path: Path, tags: dict[str, str], words: str) -> None:
    met, detail = measure_again(bundled(tmp_path), tags)
    assert met, detail
    assert re.search(words, detail), detail


def test_check_and_promotion_replay_on_this_host_and_report_missing_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    store = fresh_store(tmp_path, monkeypatch)
    add_candidate(store, "cnn", instruction_sets=OTHER_HOST)
    promotion.promote("cnn", "staging", reason="because", store=store)
    code, out, err = onward("check", "cnn@staging")
    assert code == 0, err
    assert "no evidence from this kind of host" in out
    done = promotion.promote("cnn", "production", reason="because", store=store)
    replayed = next(gate for gate in not_none(done.entry).gates if gate.requirement == "replay")
    assert replayed.met
    assert f"measured on {OTHER_HOST}" in replayed.detail


def test_a_machine_without_known_instruction_sets_has_a_host_kind() -> None:
    machine = Machine(cpu="x", instruction_sets=[], cores=1, memory_gb=1, system="Linux riscv64")
    assert hardware.kind(machine) == "Linux riscv64"
