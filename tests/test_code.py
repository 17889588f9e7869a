"""A stage depends only on the code that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.stages.config import code, source_files
from onward.stages.config.load import READS, read, section
from onward.stages.params import sections, untracked
from tests.toy import toy_params, write_project, write_settings

OPTIMIZERS = "onward.stages.transforms.optimizers"


@pytest.mark.parametrize("stage", READS)
def test_the_code_of_a_stage_is_its_module_and_its_imports(stage: str) -> None:
    found = code.digests(stage)
    assert f"onward.stages.{stage}" in found
    assert not set(found) & code.PLUMBING
    assert not {name for name in found if name.startswith("onward.stages.config")}


def test_modules_that_a_stage_starts_as_processes_count_as_its_code(project: Path) -> None:
    assert "onward.stages.workers.onnx_worker" in code.digests("verify")
    assert "onward.stages.parity.compare" in code.digests("verify")
    assert "onward.stages.parity.compare" not in code.digests("data")


def test_every_listed_module_exists() -> None:
    started = [name for names in code.STARTED.values() for name in names]
    for name in (*code.PLUMBING, *code.STARTED, *started):
        assert source_files.locate(name) is not None, name


def test_only_models_that_try_a_technique_depend_on_its_code(project: Path) -> None:
    write_project(project, params=toy_params(optimize={"candidates": ["onnxsim"]}))
    found = {name: json.loads(text) for name, text in sections(read()).items()}
    own = {name for name in found["toy/optimize.json"]["code"] if name.startswith(f"{OPTIMIZERS}.")}
    assert own == {f"{OPTIMIZERS}.onnxsim"}
    for name, content in found.items():
        assert name == "toy/optimize.json" or f"{OPTIMIZERS}.onnxsim" not in content.get("code", {})


SOURCE = """\
def double(x):
    return 2 * x
"""


@given(st.lists(st.sampled_from(["comment", "docstring", "blank", "module"]), max_size=4))
def test_comments_docstrings_and_blank_lines_do_not_change_the_digest(kinds: list[str]) -> None:
    source = SOURCE
    for kind in kinds:
        if kind == "comment":
            source = source.replace("return 2 * x", "return 2 * x  # twice", 1)
        elif kind == "docstring" and '"""Twice' not in source:
            source = source.replace("def double(x):\n", 'def double(x):\n    """Twice `x`,\n\n    # always."""\n', 1)
        elif kind == "blank":
            source = source.replace("def double", "\n\ndef double", 1)
        elif kind == "module" and not source.startswith('"""'):
            source = '"""A module."""\n' + source
    assert code.stripped(source) == code.stripped(SOURCE)


@pytest.mark.parametrize("changed", ["return 3 * x", "return '# 2' * x", 'return """twice""" * x'])
def test_a_code_change_changes_the_digest(changed: str) -> None:
    assert code.stripped(SOURCE.replace("return 2 * x", changed)) != code.stripped(SOURCE)


def test_sources_are_found_in_the_repository_and_under_src(project: Path) -> None:
    repository = project.parent
    (repository / ".git").mkdir()
    for folder, name in ((repository / "src" / "nets", "deep"), (repository, "shallow")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("WIDTH = 16\n")
    (repository / "src" / "nets" / "__init__.py").write_text("")
    source = "from nets.deep import WIDTH\nimport shallow\n"
    write_project(project)
    (project / "models" / "toy.py").write_text(source + (project / "models" / "toy.py").read_text())
    sources = json.loads(sections(read())["toy/export.json"])["sources"]
    assert {"models/toy.py", "../src/nets/deep.py", "../src/nets/__init__.py", "../shallow.py"} <= set(sources)


def test_a_callable_of_an_installed_package_is_tracked_by_version_with_a_notice(project: Path) -> None:
    write_project(project, params=toy_params(quality="sklearn.metrics:accuracy_score"))
    assert any("sklearn.metrics" in line and "scikit-learn 1." in line for line in untracked(read()))
    sources = json.loads(sections(read())["toy/verify.json"])["sources"]
    assert sources["sklearn.metrics"].startswith("scikit-learn 1.")


def test_the_order_of_inputs_outputs_and_dimensions_survives(project: Path) -> None:
    inputs = {"x": {"shape": ["rows", 6]}, "mask": {"shape": ["rows", "columns"]}, "a": {"shape": ["rows", 2]}}
    outputs = {"z": {"shape": ["rows", 3]}, "b": {"shape": ["rows"]}}
    dims = {"rows": {"max": 16, "typical": [1]}, "columns": {"max": 4, "typical": [2]}}
    write_project(project, params=toy_params(inputs=inputs, outputs=outputs, dims=dims))
    write_settings()
    part = section("toy", "export")
    assert (list(part.inputs), list(part.outputs), list(part.dims)) == (list(inputs), list(outputs), list(dims))
