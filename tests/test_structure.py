"""The house: arrows go one way, and the tools that hold it together agree."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, run


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


def test_all_code_is_imported_by_one_name() -> None:
    bare = {
        path.relative_to(ROOT).as_posix()
        for folder in ("onward", "registry", "stages", "models", "tests", "benchmarks", "docs")
        for path in files(folder)
        if roots(imports(path)) & {"registry", "stages"}
    }
    assert not bare


def test_great_expectations_is_imported_only_when_a_suite_judges() -> None:
    top = ast.parse((ROOT / "registry" / "gates" / "suites.py").read_text())
    top.body = [node for node in top.body if not isinstance(node, ast.FunctionDef)]
    assert "great_expectations" not in roots(names_of(top))


def test_the_worker_needs_numpy_and_onnxruntime_and_nothing_else() -> None:
    names = roots(imports(ROOT / "stages" / "workers" / "onnx_worker.py"))
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


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"])
def test_the_tools_have_nothing_to_say(command: str) -> None:
    done = run(command, ROOT)
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
