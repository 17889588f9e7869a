"""The `onward` command: its output, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onward.cli  # noqa: F401  # adds the commands of the pipeline to the app
from onward.registry.cli.main import app
from onward.registry.evidence.records import CaseResult, FirstDivergence, OutputComparison
from onward.registry.evidence.reports import VerifyReport, save
from onward.registry.gates import builtin
from onward.registry.operations import promotion
from onward.registry.store.store import Store
from onward.registry.trust.identity import who
from tests.conftest import Command, not_none
from tests.store_factory import add_candidate, artifacts_of, fresh_store, scale_model

COMMANDS = [command.name or not_none(command.callback).__name__ for command in app.registered_commands]
# It runs Ray until Ctrl-C.
WITHOUT_ANSWER = ("fleet node",)
SUBCOMMANDS = [
    f"{group.name} {command.name}"
    for group in app.registered_groups
    for command in not_none(group.typer_instance).registered_commands
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def promote(onward: Command, to: str, *arguments: str) -> tuple[int, str, str]:
    return onward("promote", "cnn", *arguments, "--to", to, "--reason", "because")


def test_help_is_fast_and_shows_examples() -> None:
    shown = subprocess.run([sys.executable, "-m", "onward.cli", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    for command in (*COMMANDS, *(name.split()[0] for name in SUBCOMMANDS)):
        assert f"\n  {command}" in shown.stdout
    heavy = ("mlflow", "numpy", "onnx", "torch")
    script = f"import sys, onward.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("command", COMMANDS + SUBCOMMANDS)
def test_every_command_has_an_example_and_json(onward: Command, command: str) -> None:
    code, out, _ = onward(*command.split(), "--help")
    assert code == 0
    assert f"Example: onward {command}" in " ".join(out.split())
    assert ("--json" in out) != (command in WITHOUT_ANSWER)


def test_commands_promote_to_production_and_roll_back(store: Store, onward: Command) -> None:
    for factor in (1, 2):
        version = str(add_candidate(store, "cnn", factor))
        code, out, err = promote(onward, "staging", version)
        assert (code, err) == (0, "")
        assert f"staging of cnn, entry {version}: ann promoted version {version}" in out
        assert promote(onward, "production")[0] == 0
    code, out, _ = onward("status")
    assert code == 0
    assert out.splitlines()[0].split() == ["model", "newest", "version", "staging", "production"]
    code, out, _ = onward("rollback", "cnn", "--env", "production", "--reason", "wrong on sevens")
    assert code == 0
    assert "ann rolled back to version 1" in out
    code, out, _ = onward("history", "cnn")
    assert "wrong on sevens" in out
    assert "latency met" in out
    assert [line.split()[0] for line in out.splitlines() if " live " in line] == ["2", "3"]


def test_with_json_stdout_contains_only_json(store: Store, onward: Command, tmp_path: Path) -> None:
    add_candidate(store, "cnn")
    np.savez(tmp_path / "x.npz", x=np.ones((2, 4), np.float32))
    scale_model(tmp_path / "m.onnx", 2)
    answers = {}
    for arguments in (
        ("promote", "cnn", "--to", "staging", "--reason", "because"),
        ("status",),
        ("history", "cnn"),
        ("check", "cnn@staging"),
        ("diff", "cnn@staging", "cnn/1"),
        ("compare", "cnn", "1", "1"),
        ("reconcile",),
        ("predict", "cnn@staging", "--input", "x.npz"),
        ("inspect", "m.onnx"),
    ):
        code, out, err = onward(*arguments, "--json")
        assert (code, err) == (0, "")
        answers[arguments[0]] = json.loads(out)
    assert answers["promote"]["changed"] is True
    assert answers["status"][0]["environments"]["staging"]["live"]["number"] == 1
    assert answers["history"]["staging"][0]["state"] == "live"
    assert answers["check"]["met"] is True
    assert answers["predict"]["y"]["values"] == [[1, 1, 1, 1]] * 2
    assert answers["inspect"]["operators"] == {"Mul": 1}


def test_an_unmet_gate_exits_1_and_lists_all_unmet_gates(store: Store, onward: Command) -> None:
    add_candidate(store, "cnn", parity="failed", data=None)
    code, out, err = promote(onward, "staging", "1")
    assert (code, out) == (1, "")
    assert err.startswith(
        "onward: cnn version 1 does not meet the requirements of staging; nothing was changed:\n"
        "  parity: failed\n  data:"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("promote", "cnn", "--to", "moon", "--reason", "x"),
        ("promote", "cnn", "--to", "staging"),
        ("promote", "cnn", "three", "--to", "staging", "--reason", "x"),
        ("promote", "nope", "--to", "staging", "--reason", "x"),
        ("promote", "../x", "--to", "staging", "--reason", "x"),
        ("rollback", "cnn", "--env", "staging", "--to", "9", "--reason", "x"),
        ("history", "nope"),
        ("check", "cnn"),
        ("diff", "cnn", "cnn/1"),
        ("compare", "cnn", "1", "9"),
        ("predict", "cnn@staging", "--input", "absent.npz"),
        ("predict", "absent.onnx", "--input", "x.npz"),
        ("inspect", "absent.onnx"),
        ("nonsense",),
    ],
)
def test_wrong_usage_exits_2(store: Store, onward: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    promote_version = add_candidate(store, "cnn")
    promotion.promote("cnn", "staging", promote_version, reason="because", store=store)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 4), np.float32))
    code, out, err = onward(*arguments)
    assert (code, out) == (2, "")
    assert err
    assert "Traceback" not in err


def test_a_lost_race_exits_3(store: Store, onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    judge = builtin.judge

    def promote_meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(builtin, "judge", judge)
        promotion.promote("cnn", "staging", 1, reason="quicker", actor="bob", store=store)
        return judge(*arguments)

    monkeypatch.setattr(builtin, "judge", promote_meanwhile)
    code, out, err = promote(onward, "staging", "2")
    assert (code, out) == (3, "")
    assert "another command was faster" in err
    assert "bob promoted version 1" in err
    assert "lost" in onward("history", "cnn")[1]


def test_an_unreachable_store_exits_4(onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, out, err = onward("status")
    assert (code, out) == (4, "")
    assert err.count("\n") == 1
    assert "secret" not in err


def test_without_a_store_or_checkout_the_error_names_the_next_step(
    onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_GIT_REMOTE", raising=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = onward("status")
    assert code == 2
    assert "ONWARD_PROJECT" in err
    assert "MLFLOW_TRACKING_URI" in err


def test_an_empty_store_names_the_command_that_fills_it(store: Store, onward: Command) -> None:
    assert onward("status") == (0, "No model is registered yet: `dvc repro` registers every model that passes.\n", "")


def test_check_finds_a_changed_byte_in_the_live_version(store: Store, onward: Command) -> None:
    add_candidate(store, "cnn")
    promote(onward, "staging")
    assert onward("check", "cnn@staging")[0] == 0
    (artifacts_of(store, "staging.cnn", 1) / "validation" / "tolerance.json").write_text("{}")
    code, _, err = onward("check", "cnn@staging")
    assert code == 1
    assert "validation/tolerance.json has changed" in err


def test_check_detects_outputs_that_do_not_match_the_recorded_ones(store: Store, onward: Command) -> None:
    add_candidate(store, "cnn", 2, recorded_factor=3)
    promote(onward, "staging")
    code, out, err = onward("check", "cnn@staging")
    assert code == 1
    assert "output y is off by up to 7" in err
    assert "met     digest" in out


def test_status_shows_drift_until_reconcile_runs(store: Store, onward: Command) -> None:
    add_candidate(store, "cnn")
    promote(onward, "staging")
    store._client.delete_registered_model_alias("staging.cnn", "live")
    assert "the alias live of staging.cnn is not set and should be set to version 1" in onward("status")[1]
    assert "corrected" in onward("reconcile")[1]
    assert "alias" not in onward("status")[1]


def test_a_table_in_a_pipe_is_not_truncated(store: Store, onward: Command) -> None:
    name = "a-model-with-quite-a-long-name-that-would-not-fit-into-eighty-columns-" + "x" * 40
    add_candidate(store, name)
    onward("promote", name, "--to", "staging", "--reason", "because")
    assert name in onward("status")[1]


def test_predict_writes_every_output(store: Store, onward: Command, tmp_path: Path) -> None:
    scale_model(tmp_path / "m.onnx", 2)
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.savez(tmp_path / "x.npz", x=x)
    code, out, _ = onward("predict", "m.onnx", "--input", "x.npz", "--output", "y.npz")
    assert (code, out) == (0, "y float32[100, 4] -> y.npz\n")
    assert np.array_equal(np.load(tmp_path / "y.npz")["y"], 2 * x)


def test_predict_refuses_pickled_arrays(onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scale_model(tmp_path / "m.onnx", 2)
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    code, _, err = onward("predict", "m.onnx", "--input", "x.npz")
    assert code == 2
    assert "not an .npz file of plain arrays" in err


def test_inspect_describes_a_file(onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scale_model(tmp_path / "m.onnx", 2)
    code, out, _ = onward("inspect", "m.onnx")
    assert code == 0
    for words in ("ai.onnx 20", "IR version  10", "x float32[batch, 4]", "Mul", "onward.inputs", "parameters  1"):
        assert words in out


def test_inspect_of_a_report_shows_the_failure_and_the_first_difference(
    onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    difference = OutputComparison(output="y", verdict="out of tolerance", max_abs=0.5, share_out=0.25)
    report = VerifyReport(
        model="toy",
        status="failed",
        reason="1 of 2 cases failed",
        cases=[
            CaseResult(case="normal0@b1", seed=1, sizes={}, verdict="ok"),
            CaseResult(case="zeros@b3", seed=2, sizes={}, verdict="out of tolerance", outputs=[difference]),
            CaseResult(case="empty@b0", seed=3, sizes={}, verdict="aborted", probe=True, reason="died of SIGABRT"),
        ],
        divergence=FirstDivergence(
            case="zeros@b3",
            value="h",
            operator="Gemm",
            module="head",
            source="m.py:7",
            difference=0.5,
            scale=2,
        ),
    )
    save(report, tmp_path / "report.json")
    code, out, _ = onward("inspect", "report.json")
    assert code == 0
    for words in (
        "verify of toy: failed", "1 of 2 cases passed", "zeros@b3: out of tolerance: y off by 0.5, 25.0% out of",
        "probe empty@b0: aborted: died of SIGABRT", "Gemm, which computes 'h' (case zeros@b3)", "head", "m.py:7",
        "0.5, with values up to 2",
    ):  # fmt: skip
        assert words in out
    assert json.loads(onward("inspect", "report.json", "--json")[1])["divergence"]["module"] == "head"
    (tmp_path / "odd.json").write_text('{"stage": "magic"}')
    assert onward("inspect", "odd.json")[0] == 2


def external(path: Path, location: str) -> None:
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [tensor],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.write_bytes(b"not onnx at all"), "is not an ONNX file"),
        (lambda path: path.write_bytes(b""), "is not an ONNX file"),
        (lambda path: path.write_bytes(scale_model(path, 2).read_bytes()[:-40]), "ONNX"),
        (lambda path: external(path, "weights.bin"), "external data 'weights.bin' is missing"),
        (lambda path: external(path, "../../etc/passwd"), "is outside the folder"),
        (lambda path: external(path, "/etc/passwd"), "is outside the folder"),
    ],
)
def test_inspect_rejects_broken_files_with_one_line(
    onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "m.onnx")
    code, out, err = onward("inspect", "m.onnx")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_actor_is_known_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONWARD_ACTOR", "ann")
    assert who() == "ann"
    monkeypatch.delenv("ONWARD_ACTOR")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert who()


def test_ui_opens_the_page_of_a_server(onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example.org")
    code, out, _ = onward("ui")
    assert code == 0
    assert out.startswith("https://mlflow.example.org\n")
    assert "Model training" in out


def test_environments_are_created_once(store: Store, onward: Command) -> None:
    assert onward("environments", "create", "cnn")[1].splitlines() == [
        "created environments/staging",
        "created staging.cnn",
        "created environments/production",
        "created production.cnn",
    ]
    assert json.loads(onward("environments", "create", "cnn", "mlp", "--json")[1]) == {
        "created": ["staging.mlp", "production.mlp"]
    }
    assert onward("environments", "create", "mlp")[1] == "Everything exists already.\n"
    assert onward("environments", "create", "../mlp")[0] == 2


def test_the_version_option_prints_the_package_version(onward: Command) -> None:
    assert onward("--version") == (0, f"onward {version('onward')}\n", "")


@pytest.mark.parametrize("arguments", [("-h",), ("status", "-h"), ("environments", "grant", "-h")])
def test_short_option_h_shows_help(onward: Command, arguments: tuple[str, ...]) -> None:
    assert onward(*arguments) == onward(*arguments[:-1], "--help")


def test_shell_completion_completes_commands() -> None:
    asked = {**os.environ, "_ONWARD_COMPLETE": "complete_bash", "COMP_WORDS": "onward rollb", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "onward.cli"], env=asked, capture_output=True, text=True)
    assert done.stdout.split() == ["rollback"]
