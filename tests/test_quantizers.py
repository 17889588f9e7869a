"""A quantiser may fail in any way without ending the stage, and NNCF works in an environment of its own."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onward.registry.errors import UsageError
from onward.registry.evidence.reports import QuantizeReport
from onward.registry.host import environments, runtimes
from onward.stages.config import code
from onward.stages.transforms.builder import Feed
from onward.stages.transforms.graph_profile import GraphProfile
from onward.stages.transforms.quantizers import nncf, static
from tests.conftest import ROOT
from tests.onnx_models import linear
from tests.toy import through, toy_params, write_project

LARGE = GraphProfile(products=10**7, multiplications=10**7)


def test_a_quantizer_may_raise_abort_hang_or_write_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Path, target: Path, feeds: Any, keep: Any, options: dict[str, Any]) -> None:
        if options["calibrate"] == "minmax":
            return  # no file
        if options["calibrate"] == "entropy":
            target.write_bytes(b"no model")
        elif options["calibrate"] == "percentile":
            raise FileNotFoundError("a file of its own")
        elif options["clip_weights"]:
            time.sleep(60)
        else:
            faulthandler.disable()  # the crash is intended
            os.abort()

    monkeypatch.setattr(static, "quantize", fails)
    monkeypatch.setattr(static, "skip_reason", lambda *_: "")
    calibrations = [{"static": {"calibrate": name}} for name in ("minmax", "entropy", "percentile", "mse")]
    params = toy_params(
        optimize={"candidates": []},
        quantize={"candidates": [*calibrations, {"static": {"calibrate": "mse", "clip_weights": True}}], "timeout": 5},
    )
    write_project(project, params=params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert isinstance(report, QuantizeReport)
    assert report.status == "passed", report.reason
    assert [variant.status for variant in report.variants] == ["failed"] * 5
    words = ["no such file", "not an ONNX file", "a file of its own", "SIGABRT", "no result within 5 s"]
    for variant, expected in zip(report.variants, words, strict=True):
        assert expected in variant.reason


def test_layers_that_cannot_be_ranked_do_not_end_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise FileNotFoundError("int8-dynamic.ranked.onnx")

    monkeypatch.setattr("onward.stages.quantize.layer_costs", missing)
    monkeypatch.setattr("onward.stages.transforms.quantizers.dynamic.skip_reason", lambda *_: "")
    params = toy_params(
        quality=None,
        budget={"min_snr_db": 90},
        optimize={"candidates": []},
        quantize={"candidates": [{"dynamic": {"reduce_range": True}}]},
    )
    write_project(project, params=params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert report.status == "passed", report.reason
    (variant,) = report.variants
    assert "its layers could not be ranked: FileNotFoundError: int8-dynamic.ranked.onnx" in variant.reason


def environment(root: Path, program: str) -> None:
    """An environment for NNCF whose interpreter runs this program instead."""
    python = root / ".runtimes" / "nncf" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (root / "fake.py").write_text(program)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {root / "fake.py"} "$@"\n')
    python.chmod(0o755)


COPIES = """
import json, os, shutil, sys
order = json.load(open(sys.argv[2]))
import numpy
samples = {key: list(value.shape) for key, value in numpy.load(order["samples"]).items()}
json.dump({**order, "samples": samples, "ci": os.environ["NNCF_CI"], "program": sys.argv[1]}, open("seen.json", "w"))
shutil.copyfile(order["source"], order["target"])
"""


def test_nncf_gets_its_order_and_sends_no_telemetry(project: Path) -> None:
    environment(project, COPIES)
    linear(project / "float.onnx")
    samples: list[Feed] = [{"x": np.zeros((2, 4), np.float32)}, {"x": np.ones((3, 4), np.float32)}]
    nncf.quantize(project / "float.onnx", project / "int8.onnx", samples, ["h"], {"max_error": 0.05})
    seen = json.loads((project / "seen.json").read_text())
    assert seen["samples"] == {"0/x": [2, 4], "1/x": [3, 4]}
    assert (seen["max_error"], seen["ci"], seen["float_nodes"]) == (0.05, "1", ["giving_h"])
    assert Path(seen["program"]).name == "nncf_process.py"
    assert onnx.load(project / "int8.onnx").graph.node


def test_nncf_that_fails_says_why(project: Path) -> None:
    environment(project, "print('Traceback'); raise SystemExit('ValidationError: no such operator\\n')")
    linear(project / "float.onnx")
    with pytest.raises(RuntimeError, match="NNCF: ValidationError: no such operator"):
        nncf.quantize(project / "float.onnx", project / "int8.onnx", [], [], {"max_error": 0.0})


def test_a_missing_nncf_is_reported_with_the_command_that_installs_it(project: Path) -> None:
    command = "NNCF is not installed: onward runtimes install nncf"
    assert nncf.skip_reason(LARGE, {"max_error": 0.0}, ["cpu"]) == command
    assert runtimes.state("nncf", project).reason == "not installed: onward runtimes install nncf"
    environment(project, "")
    assert nncf.skip_reason(LARGE, {"max_error": 0.0}, ["cpu"]) == ""


def test_nncf_is_a_tool_and_no_runtime(project: Path) -> None:
    environment(project, "import sys; print('3.4.0' if 'nncf' in sys.argv[2] else '')")
    made = project / ".runtimes" / "nncf" / "onward.json"
    made.write_text(json.dumps(environments.wanted("nncf", project)))
    found = runtimes.state("nncf", project)
    assert (found.usable, found.version) == (True, "3.4.0")
    (project / "fake.py").write_text("raise SystemExit('ModuleNotFoundError: nncf')")
    (project / ".runtimes" / "nncf.json").unlink()
    assert runtimes.state("nncf", project).reason == "does not start: ModuleNotFoundError: nncf"


def test_nncf_runs_only_if_static_breaks_the_budget(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(project, COPIES)
    monkeypatch.setattr(static, "skip_reason", lambda *_: "")
    params = toy_params(optimize={"candidates": []}, quantize={"candidates": ["static", "nncf"]})
    params["models"]["toy"]["budget"] = {"quality_drop": 0.5}
    write_project(project, params=params)
    report = through("train", "data", "export", "verify", "optimize", "quantize")["quantize"]
    assert isinstance(report, QuantizeReport)
    held, other = report.variants
    assert held.status == "passed", held.reason
    assert (other.name, other.status) == ("int8-nncf", "not attempted")
    assert other.reason == "int8-static holds the quality budget, and this variant would be no faster"


def test_the_digest_of_the_stage_includes_nncfs_program() -> None:
    assert "onward.stages.transforms.nncf_process" in code.digests(
        "quantize", ("onward.stages.transforms.quantizers.nncf",)
    )


def test_nncf_quantizes_and_leaves_layers_in_float_to_meet_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments.install("nncf", ROOT)
    monkeypatch.chdir(ROOT)
    linear(tmp_path / "float.onnx")
    samples: list[Feed] = [
        {"x": np.random.default_rng(seed).standard_normal((8, 4)).astype(np.float32)} for seed in range(4)
    ]
    for error in (0.0, 0.02):
        nncf.quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples, [], {"max_error": error})
        operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
        assert "MatMul" in operators
        assert error or "QuantizeLinear" in operators


def test_an_unknown_runtime_names_nncf_among_those_that_can_be_installed(project: Path) -> None:
    with pytest.raises(UsageError, match="nncf"):
        environments.install("ncf", project)
