"""The structure of the code: dependencies point one way, and the linters agree."""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path

import pytest
import yaml

from onward.stages.__main__ import STAGES
from onward.stages.config.chain import PREDECESSORS
from onward.stages.config.code import stripped
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


def test_all_code_is_imported_as_onward() -> None:
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


def test_the_worker_needs_only_numpy_and_onnxruntime() -> None:
    names = roots(imports(ROOT / "stages" / "workers" / "onnx_worker.py"))
    assert names - sys.stdlib_module_names - {"__future__"} == {"numpy", "onnxruntime"}


def test_every_stage_has_a_file_of_its_name_and_depends_only_on_outputs() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages) == set(STAGES)
    for name, stage in stages.items():
        body = stage.get("do", stage)
        assert body["cmd"].split()[:4] == ["python", "-m", "onward.stages", name]
        assert (ROOT / "stages" / f"{name}.py").is_file()
        assert all(dependency.split("/")[0] == "build" for dependency in body.get("deps", []))


def test_each_stage_depends_on_its_settings_and_on_the_results_that_the_chain_of_digests_covers() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, before in PREDECESSORS.items():
        others = {"build/host"} if name == "benchmark" else set()
        wanted = {f"build/params/${{key}}/{name}.json", *(f"build/${{key}}/{stage}" for stage in before)}
        assert set(stages[name]["do"]["deps"]) == wanted | others
    order = list(PREDECESSORS)
    assert all(PREDECESSORS[later] == (earlier,) for earlier, later in itertools.pairwise(order))


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"])
def test_the_linters_report_nothing(command: str) -> None:
    done = run(command, ROOT)
    assert done.returncode == 0, done.stdout


def test_no_file_has_more_than_400_lines_of_code() -> None:
    lengths = {
        str(p.relative_to(ROOT)): len(stripped(p.read_text()).splitlines())  # without docstrings, comments, blank lines
        for f in ("stages", "registry", "models")
        for p in files(f)
    }
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_every_pinned_requirement_is_exact() -> None:
    for name in (
        "constraints.txt",
        *[f"registry/host/pins/{name}.txt" for name in ("cpu", "openvino", "openvino-native", "cuda")],
    ):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines), name
