"""The house: arrows go one way, and the tools that hold it together agree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

# What of registry a stage may use: the vocabulary, what describes a file, the policy that params.yaml holds, a
# variant's session options; and, for the two stages that speak to MLflow, what records.
SHARED = {
    "registry", "onward.registry.evidence.reports", "onward.registry.evidence.records", "onward.registry.files",
    "onward.registry.errors", "onward.registry.artifact.onnx_file", "onward.registry.gates.policy",
    "onward.registry.evidence.session_options", "onward.registry.host.runtimes", "onward.registry.host.hardware",
    "onward.registry.evidence.similarity", "onward.registry.evidence.kinds", "onward.registry.text",
    "onward.registry.yaml_text",
}  # fmt: skip
RECORDING = {"onward.registry.tracking.recorder", "onward.registry.artifact.replay"}
MAY_RECORD = {"stages/publish.py", "stages/tracking.py"}


def imports(path: Path) -> set[str]:
    return names_of(ast.parse(path.read_text()))


def names_of(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", files("models"), ids=str)
def test_models_know_nothing_of_the_rest(path: Path) -> None:
    assert not roots(imports(path)) & {"stages", "registry", "mlflow", "onnxruntime"}


@pytest.mark.parametrize("path", files("registry"), ids=str)
def test_the_registry_imports_neither_stages_nor_models_nor_torch(path: Path) -> None:
    assert not roots(imports(path)) & {"stages", "models", "torch", "dvc"}


@pytest.mark.parametrize("path", files("registry"), ids=str)
def test_great_expectations_is_imported_by_suites_alone_and_only_when_one_judges(path: Path) -> None:
    top = ast.parse(path.read_text())
    top.body = [node for node in top.body if not isinstance(node, ast.FunctionDef)]
    assert "great_expectations" not in roots(names_of(top))
    assert path.name == "suites.py" or "great_expectations" not in roots(imports(path))


@pytest.mark.parametrize("path", files("stages"), ids=str)
def test_stages_use_of_the_registry_only_what_is_shared_and_never_mlflow(path: Path) -> None:
    names = imports(path)
    assert "mlflow" not in roots(names)
    assert "models" not in roots(names)
    allowed = SHARED | (RECORDING if path.relative_to(ROOT).as_posix() in MAY_RECORD else set())
    used = {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] == "registry"}
    assert used <= allowed


def test_the_worker_needs_numpy_and_onnxruntime_and_nothing_else() -> None:
    names = roots(imports(ROOT / "stages" / "runtime" / "worker.py"))
    assert names - sys.stdlib_module_names - {"__future__"} == {"numpy", "onnxruntime"}


def test_every_stage_of_the_pipeline_is_a_file_of_its_name_that_it_depends_on() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert f"stages.{name}" in body["cmd"]
        assert (ROOT / "stages" / f"{name}.py").is_file()
        for dependency in body.get("deps", []):
            if not dependency.startswith("build"):
                assert (ROOT / dependency).exists(), dependency


def below(path: str, listed: set[str]) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in listed)


def local_imports(path: Path) -> set[Path]:
    """Files of the repository that a file imports, directly or through others."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        for name in imports(waiting.pop()):
            place = name.removeprefix("onward.").replace(".", "/")
            for candidate in (ROOT / f"{place}.py", ROOT / place / "__init__.py"):
                if candidate.is_file() and candidate not in found:
                    found.add(candidate)
                    waiting.append(candidate)
    return found


# What every stage is carried by. None of it changes what a stage computes: settings, sources and the machine reach a
# stage through files of their own, and the rest hands things over.
PLUMBING = {
    "stages/__init__.py",
    "stages/command.py",
    "stages/host.py",
    "stages/reports.py",
    "stages/config",
    "stages/parity/reference.py",
    "stages/workers/__init__.py",
    "stages/workers/worker.py",
    "stages/workers/isolated_call.py",
    "stages/workers/jitter.py",  # parity/reference.py uses it for verify, which lists all of workers/
}


def test_every_stage_depends_on_all_code_that_decides_what_it_computes() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        body = stage.get("do", stage)
        if body.get("always_changed"):
            continue
        listed = set(body["deps"])
        code = {p.relative_to(ROOT).as_posix() for p in local_imports(ROOT / "stages" / f"{name}.py")}
        code = {path for path in code if path.startswith("stages/")} | {f"stages/{name}.py"}
        missing = {path for path in code if not below(path, listed)}
        assert not missing, f"{name} does not depend on {sorted(missing)}"


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_the_tools_have_nothing_to_say(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout


def test_no_file_is_too_long_to_be_one_thing() -> None:
    lengths = {
        str(p.relative_to(ROOT)): len(p.read_text().splitlines())
        for f in ("stages", "registry", "models")
        for p in files(f)
    }
    assert {name: length for name, length in lengths.items() if length > 470} == {}


def test_every_pinned_requirement_is_exact() -> None:
    for name in ("constraints.txt", "runtimes/cpu.txt", "runtimes/openvino.txt", "runtimes/cuda.txt"):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines), name
