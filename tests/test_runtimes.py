"""Runtimes: each has its own environment and counts as usable only after a test run.

OpenVINO is installed permanently in .runtimes: it is a second provider on any x86 machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import mlflow.artifacts
import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from onward.registry.artifact.replay import replay_in_subprocess
from onward.registry.artifact.serving_plan import Serving
from onward.registry.cli import runtimes as cli_runtimes
from onward.registry.errors import OnwardError, UsageError
from onward.registry.evidence.records import RuntimeState, by_speed
from onward.registry.evidence.reports import BenchmarkReport, PublishReport
from onward.registry.evidence.session_options import CPU, OPENVINO, OPENVINO_NATIVE, SessionOptions
from onward.registry.host import environments, hardware, runtimes
from onward.stages import host
from onward.stages.benchmark import benchmark
from onward.stages.data import data
from onward.stages.export import export
from onward.stages.optimize import optimize
from onward.stages.publish import publish
from onward.stages.quantize import quantize
from onward.stages.select import select
from onward.stages.train import train
from onward.stages.verify import verify
from onward.stages.workers.worker import Worker
from tests.conftest import ROOT, Command
from tests.onnx_models import linear
from tests.store_factory import version_for_two_providers
from tests.toy import one, toy_params, write_project, write_settings

CONVOLUTIONAL = """
import numpy as np
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 3),
    )

def samples(split):
    rng = np.random.default_rng({"evaluation": 1, "calibration": 2}[split])
    return {"x": rng.standard_normal((96, 1, 12, 12)).astype(np.float32), "label": rng.integers(0, 3, 96)}

def accuracy(outputs, labels):
    return 1.0
"""


def run_on(python: Path, code: str) -> str:
    """The last line that a script prints in another environment, with its own ONNX Runtime before our packages."""
    before = f"import sys; sys.path += [{str(ROOT)!r}, {sysconfig.get_path('purelib')!r}]\nfrom pathlib import Path\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", before + code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one small runtime, `tiny`, that installs quickly."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes" / "tiny.txt").write_text("# nothing but what venv brings\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_openvino_is_tested_and_not_only_listed(openvino: Path) -> None:
    found = runtimes.state("openvino", ROOT)
    assert found.usable
    assert found.version == "1.24.1"
    assert found.node_share["float32"] == 1.0
    assert found.int8_exact is not None


def test_int8_saturates_exactly_on_hosts_without_int8_instructions(openvino: Path) -> None:
    exact = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(hardware.instruction_sets())
    assert runtimes.state("cpu", ROOT).int8_exact is bool(exact)


def up_to_benchmark(project: Path) -> None:
    """Every stage before benchmark, with this checkout's runtimes."""
    (project / ".runtimes").symlink_to(ROOT / ".runtimes")
    write_settings()
    host.main()
    for name, stage in (("train", train), ("data", data), ("export", export), ("verify", verify)):
        assert one(name, "toy", stage).passed
    for name, compute in (("optimize", optimize), ("quantize", quantize)):
        one(name, "toy", compute)


def in_bfloat16(runtime: str) -> None:
    """Let the host stage's answer say that a runtime computes in bfloat16. OpenVINO emulates it on other CPUs."""
    path = Path("build/host/machine.json")
    described = json.loads(path.read_text())
    for state in described["runtimes"]:
        if state["runtime"] == runtime:
            state["precisions"] = ["bfloat16"]
    path.write_text(json.dumps(described))


def test_a_real_model_is_measured_published_and_replayed_on_all_runtimes(
    project: Path, openvino: Path, native: Path, store_uri: str, tmp_path: Path
) -> None:
    names = ["cpu", "openvino", "openvino-native", "cuda"]
    short: dict[str, Any] = {"optimize": {"candidates": ["onnxslim"]}, "quantize": {"candidates": ["static"]}}
    quick = {"search_seconds": 5, "finalists": 1, "callers": [1]}
    short["benchmark"] = toy_params()["models"]["toy"]["benchmark"] | quick
    params = toy_params(inputs={"x": {"shape": ["batch", 1, 12, 12]}}, **short) | {"runtimes": names}
    write_project(project, CONVOLUTIONAL, params)
    up_to_benchmark(project)
    in_bfloat16("openvino-native")
    report = one("benchmark", "toy", benchmark)
    assert isinstance(report, BenchmarkReport)
    assert report.passed, report.reason
    plain = {m.runtime: m for m in report.measurements if m.variant == "plain"}
    assert set(plain) == set(names[:3]) | ({"cuda"} if hardware.accelerators() else set())
    assert plain["openvino"].node_share == {OPENVINO: 1.0}
    assert plain["openvino-native"].node_share == {OPENVINO_NATIVE: 1.0}
    assert plain["openvino-native"].latencies[0].p50_ms > 0
    assert {state.runtime: state.usable for state in report.runtimes}["openvino"]
    lower = {m.variant: m for m in report.measurements if m.runtime == "openvino-native"}["plain-bf16"]
    assert (lower.precision, lower.graph, lower.files) == ("bfloat16", "plain", plain["cpu"].files)
    assert lower.options == SessionOptions(precision="bfloat16")
    if lower.status == "passed":  # it was among the fastest, so its answers were judged as those of lower precision
        assert lower.snr_db is not None
        assert lower.snr_db < 100
    for m in report.measurements:  # no variant has the latencies of another one of its file
        assert [latency.size for latency in m.latencies] in ([], [latency.size for latency in plain["cpu"].latencies])
    assert plain["cpu"].host_ratios["all"].value == 1
    for measured in report.measurements:
        assert bool(measured.host_ratios) == bool(measured.latencies), measured.variant
    chosen = one("select", "toy", select)
    assert chosen.passed
    published = one("publish", "toy", publish)
    assert isinstance(published, PublishReport)
    assert published.version == 1
    folder = Path(mlflow.artifacts.download_artifacts("models:/toy/1", dst_path=str(tmp_path / "version")))
    serving = Serving.load(folder)
    assert serving is not None
    assert set(names[:3]) <= set(serving.root)
    assert list(serving.root) == [winner.runtime for winner in by_speed(chosen.winners)]
    assert replay_in_subprocess(folder)[0]  # in this environment the CPU winner is served
    script = f"from onward.registry.artifact.replay import replay; print(replay(Path({str(folder)!r})))"
    for python, name in ((openvino, OPENVINO), (native, OPENVINO_NATIVE)):
        answer = run_on(python, script)
        assert answer.startswith("(True, ")
        assert f"on {name}" in answer


def test_a_model_that_a_provider_cannot_run_is_reported_as_a_cpu_fallback(
    project: Path, openvino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO does not support ai.onnx.ml: ONNX Runtime silently runs the node on the CPU."""
    node = helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")
    graph = helper.make_graph(
        [node],
        "ml",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), project / "models" / "ml.onnx")
    source = (
        "import numpy as np\n\ndef samples(split):\n    rng = np.random.default_rng(len(split))\n"
        "    return {'x': rng.standard_normal((96, 6)).astype(np.float32)}\n"
    )
    changes = {"build": None, "quality": None, "onnx": "models/ml.onnx", "outputs": {"y": {"shape": ["batch", 6]}}}
    write_project(project, source, toy_params(**changes) | {"runtimes": ["openvino"]})
    up_to_benchmark(project)
    plain = benchmark("toy", project).measurements[0]
    assert plain.node_share == {CPU: 1.0}
    assert plain.reason == f"fell back to CPU: no node ran on {OPENVINO}"
    assert plain.latencies == []


def test_nodes_are_counted_before_fusion(tmp_path: Path, openvino: Path) -> None:
    feed = {"x": np.ones((2, 4), np.float32)}
    with Worker.onnx(linear(tmp_path / "m.onnx"), "m", OPENVINO, python=openvino) as worker:
        assert worker.profile(feed) == {OPENVINO: 2}


def test_the_wrapper_serves_the_openvino_winner_if_openvino_is_installed(tmp_path: Path, openvino: Path) -> None:
    version = version_for_two_providers(tmp_path)
    code = (
        "import json, numpy as np\nfrom onward.registry.inference.session import InferenceSession\n"
        f"session = InferenceSession({str(version)!r})\n"
        "answer = session.predict(np.ones((1, 4), np.float32))\n"
        "print(json.dumps([session.metadata.providers[0], session.metadata.served.file, float(answer[0, 0])]))\n"
    )
    assert json.loads(run_on(openvino, code)) == [OPENVINO, "providers/openvino/model.onnx", 3.0]


@pytest.mark.skipif(bool(hardware.accelerators()), reason="there is a GPU: CUDA is tested below")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_without_a_gpu_its_runtimes_are_absent_with_a_reason(name: str) -> None:
    found = runtimes.state(name, ROOT)
    assert (found.usable, found.reason) == (False, "no NVIDIA GPU: nvidia-smi is missing or lists none")


@pytest.mark.skipif(not hardware.accelerators(), reason="no NVIDIA GPU here")
def test_cuda_runs_on_a_gpu() -> None:
    environments.install("cuda", ROOT)
    assert runtimes.state("cuda", ROOT).node_share["float32"] == 1.0


@pytest.mark.skipif(not hardware.accelerators(), reason="no NVIDIA GPU here")
def test_float32_on_cuda_reproduces_the_cpu_outputs(tmp_path: Path) -> None:
    environments.install("cuda", ROOT)
    path, rng = tmp_path / "product.onnx", np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((512, 64)).astype(np.float32), "w")
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [result], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    feed, cuda = {"x": rng.standard_normal((128, 512)).astype(np.float32)}, runtimes.PROVIDERS["cuda"]
    with Worker.onnx(path, "product") as here:
        expected = here.run(feed)["y"]
    off = {}
    for options in (SessionOptions(), SessionOptions(tf32=True)):
        with Worker.onnx(path, "product", cuda, options, environments.python("cuda", ROOT)) as there:
            off[options.tf32] = np.abs(there.run(feed)["y"] - expected).max() / np.abs(expected).max()
    assert off[None] < 1e-5 < off[True] < 1e-2


@pytest.mark.skipif(not hardware.accelerators(), reason="no NVIDIA GPU here")
def test_tensorrt_runs_with_its_libraries_and_does_not_fall_back_without_them() -> None:
    environments.install("cuda", ROOT)
    found = runtimes.state("tensorrt", ROOT)
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        assert (found.usable, bool(found.reason)) == (False, True)
    else:
        assert found.node_share["float32"] == 1.0


def test_a_runtime_without_its_environment_names_the_install_command(checkout: Path) -> None:
    assert runtimes.state("openvino", checkout).reason == "not installed: onward runtimes install openvino"


def test_auto_probes_every_runtime_and_names_the_command_that_installs_a_missing_one(project: Path) -> None:
    write_project(project, params=toy_params() | {"runtimes": "auto"})
    write_settings()
    host.main()
    found = {state.runtime: state for state in host.load()[0].runtimes}
    assert list(found) == list(runtimes.PROVIDERS)
    assert found["cpu"].usable
    for name in ("openvino", "openvino-native"):
        assert found[name].reason == f"not installed: onward runtimes install {name}"


def test_an_environment_is_recreated_only_when_its_pins_change(checkout: Path) -> None:
    assert environments.install("tiny", checkout)
    (checkout / ".runtimes" / "tiny" / "mark").write_text("")
    assert not environments.install("tiny", checkout)
    assert (checkout / ".runtimes" / "tiny" / "mark").exists()
    (checkout / "runtimes" / "tiny.txt").write_text("# another\n")
    assert environments.install("tiny", checkout)
    assert not (checkout / ".runtimes" / "tiny" / "mark").exists()
    assert [path.name for path in (checkout / ".runtimes").iterdir()] == ["tiny"]


def test_an_environment_with_other_pins_is_not_used(checkout: Path) -> None:
    (checkout / "runtimes" / "openvino.txt").write_text("# nothing\n")
    environments.install("openvino", checkout)
    assert runtimes.state("openvino", checkout).reason.startswith("does not start: ModuleNotFoundError")
    (checkout / "runtimes" / "openvino.txt").write_text("# something else\n")
    assert runtimes.state("openvino", checkout).reason.startswith("installed from other pins than openvino.txt")


def test_a_failed_installation_keeps_the_old_environment(checkout: Path) -> None:
    environments.install("tiny", checkout)
    (checkout / "runtimes" / "tiny.txt").write_text("./no-such-package\n")
    with pytest.raises(OnwardError, match=r"runtimes/tiny\.txt cannot be installed: ERROR: .*no-such-package"):
        environments.install("tiny", checkout)
    assert [path.name for path in (checkout / ".runtimes").iterdir()] == ["tiny"]


def test_a_killed_installation_leaves_no_usable_environment(checkout: Path) -> None:
    code = "from pathlib import Path; from onward.registry.host import environments; "
    code += f"environments.install('tiny', Path({str(checkout)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while not list((checkout / ".runtimes").glob(".tiny.*/bin/python")):
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (checkout / ".runtimes" / "tiny").exists()
    assert list((checkout / ".runtimes").iterdir())
    assert environments.install("tiny", checkout)
    assert [path.name for path in (checkout / ".runtimes").iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("gpu", "there are cpu, cuda, nncf, openvino, openvino-native, tiny"), ("tensorrt", "install cuda")],
)
def test_an_unknown_runtime_cannot_be_installed(checkout: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        environments.install(name, checkout)


def test_a_probe_result_is_kept_until_environment_or_machine_changes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runtimes.state("cpu", checkout)
    assert first.usable

    def no_more(name: str, root: Path) -> Any:
        raise AssertionError("probed again")

    monkeypatch.setattr(runtimes, "_probe", no_more)
    assert runtimes.state("cpu", checkout) == first
    monkeypatch.setattr(hardware, "INSTRUCTION_SETS", ("sse2", "asimd"))
    with pytest.raises(AssertionError, match="probed again"):
        runtimes.state("cpu", checkout)


def test_a_provider_that_crashes_on_a_small_model_is_reported_in_one_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "probe").mkdir()
    (checkout / "probe" / "runtime_probe.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(runtimes, "_HERE", checkout / "probe")
    assert runtimes.state("cpu", checkout).reason == "died of SIGSEGV on a small model"


def test_the_commands_list_and_install_runtimes(checkout: Path, onward: Command) -> None:
    code, out, _ = onward("runtimes")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert set(runtimes.PROVIDERS) <= set(lines)
    assert "float32" in lines["cpu"]
    assert "onward runtimes install openvino" in lines["openvino"]
    found = json.loads(onward("runtimes", "--json")[1])
    assert [one["runtime"] for one in found["runtimes"]] == list(runtimes.PROVIDERS)
    assert found["machine"]["instruction_sets"] == hardware.instruction_sets()
    assert onward("runtimes", "install", "gpu")[0] == 2
    (checkout / "runtimes" / "cpu.txt").write_text("# nothing\n")
    code, out, _ = onward("runtimes", "install", "cpu")
    assert (code, out.split(";")[0]) == (0, "cpu: nothing to install")


def test_outside_a_checkout_the_error_says_where_runtimes_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = onward("runtimes")
    assert (code, "inside a project" in err) == (2, True)


def test_the_capabilities_of_a_runtime_are_described() -> None:
    found = RuntimeState(
        runtime="x", usable=True, node_share={"float32": 1.0, "float16": 0.5, "int8": 0.0}, int8_exact=None
    )
    assert cli_runtimes.describe(found) == "float32; float16 (50% of the nodes); no int8"


def test_environments_and_pipeline_pin_shared_packages_to_the_same_versions() -> None:
    """Different NumPy versions would distort a comparison of latencies."""
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for path in sorted((ROOT / "runtimes").glob("*.txt")):
        for line in path.read_text().splitlines():
            name, _, pinned = line.partition("==")
            if name in constraints and not line.startswith("#"):
                assert pinned == constraints[name], f"{path.name}: {name}"
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["runtimes"] == runtimes.AUTO
