"""The documents are executed: the demo, the commands of the README, and the page on adding a model."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper

from onward.stages.config import code, techniques
from onward.stages.config.schema import ModelParams, Params, candidates
from onward.stages.transforms.builder import NotApplicable
from tests.conftest import ROOT, clone, run

# Commands of the README that run elsewhere: the fixture below runs `make demo`, and `make test` is this run.
ELSEWHERE = {"make demo", "make test", ". .venv/bin/activate", "onward ui"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the demo has run, with short measurements, on the model that it promotes."""
    root = clone(tmp_path_factory.mktemp("demo") / "onward")
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["models"] = {"classifier": params["models"]["classifier"]}
    params["defaults"]["benchmark"] = {"rounds": 3, "round_seconds": 0.01, "race_seconds": 2}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert "docs/demo.py" in (root / "Makefile").read_text()
    done = run("python docs/demo.py", root, XDG_CACHE_HOME=str(root.parent / "cache"))
    assert done.returncode == 0, done.stdout
    return root


def entries(root: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("onward history classifier --json", root).stdout)["production"]
    return found


def test_the_demo_promotes_retrains_and_rolls_back(demo: Path) -> None:
    log = entries(demo)
    assert [entry["kind"] for entry in log] == ["promote", "promote", "rollback"]
    assert log[2]["sha256"] == log[0]["sha256"] != log[1]["sha256"]


def test_a_second_demo_trains_nothing_and_appends_nothing(demo: Path) -> None:
    before = entries(demo)
    done = run("python docs/demo.py", demo)
    assert done.returncode == 0, done.stdout
    assert entries(demo) == before
    assert "onward stage train" not in done.stdout
    assert "onward.stages train" not in done.stdout
    assert "onward ui" in done.stdout


@pytest.mark.parametrize("command", [line for block in blocks("README.md", "bash") for line in block.splitlines()])
def test_every_command_of_the_readme_works(demo: Path, command: str) -> None:
    if command in ELSEWHERE:
        assert command.split()[0] in (".", "make", "onward")
        return
    if command.startswith("onward rollback"):
        again = (
            'onward rollback classifier --env production --to 2 --reason "so that there is something to go back from"'
        )
        assert run(again, demo).returncode == 0
    done = run(command, demo, XDG_CACHE_HOME=str(demo.parent / "cache"))
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout


def test_the_python_code_of_the_readme_works_after_the_demo(demo: Path) -> None:
    (code,) = blocks("README.md", "python")
    before = (
        "import numpy as np\nimages = np.zeros((70, 784), np.float32)\nimage = images[:1]\n"
        "import sys\nassert 'torch' not in sys.modules\n"
    )
    after = "\nassert logits.shape == (70, 10)\nassert 'torch' not in sys.modules\nprint('fine')\n"
    (demo / "service.py").write_text(before + code + after)
    done = run("python service.py", demo, XDG_CACHE_HOME=str(demo.parent / "cache"))
    (demo / "service.py").unlink()
    assert done.stdout.endswith("fine\n"), done.stdout


def test_every_step_of_the_page_on_adding_a_model_works(demo: Path) -> None:
    page = "docs/add-your-model.md"
    (source, *_), (entry, *_), (commands,) = (blocks(page, language) for language in ("python", "yaml", "bash"))
    assert len(entry.splitlines()) <= 10
    (demo / "models" / "ranker.py").write_text(source)
    kept = (demo / "params.yaml").read_text()
    (demo / "params.yaml").write_text(kept.replace("\nmodels:\n", f"\nmodels:\n{entry}\n", 1))
    for command in commands.splitlines():
        done = run(command, demo)
        assert done.returncode == 0, done.stdout
    assert "ranker" in done.stdout
    report = json.loads((demo / "build" / "ranker" / "publish" / "report.json").read_text())
    assert (report["status"], report["version"]) == ("passed", 1)
    (demo / "params.yaml").write_text(kept)


def test_the_example_package_adds_an_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/adding-an-optimizer.md"
    (project,), (source,) = (blocks(page, language) for language in ("toml", "python"))
    (name, module), *_ = tomllib.loads(project)["project"]["entry-points"]["onward.optimizers"].items()
    package, installed = tmp_path / "package", tmp_path / "installed"
    package.mkdir()
    (package / "pyproject.toml").write_text(project)
    (package / f"{module}.py").write_text(source)
    pip = f"{sys.executable} -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation"
    done = run(f"{pip} --target {installed} {package}", tmp_path)
    assert done.returncode == 0, done.stdout
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delitem(sys.modules, module, raising=False)
    techniques.modules.cache_clear()
    try:
        (candidate,) = candidates(name)
        assert list(techniques.problems("optimize", [candidate])) == []
        assert module in code.digests("optimize", (techniques.source("optimize", candidate),))
        weights = np.ones((32, 32), np.float32)
        write_graph(tmp_path / "plain.onnx", weights)
        options = techniques.complete("optimize", candidate)
        optimize = techniques.module("optimize", candidate).optimize
        optimize(tmp_path / "plain.onnx", tmp_path / "made.onnx", options)
        assert len(onnx.load(tmp_path / "made.onnx").graph.initializer) == 1
        with pytest.raises(NotApplicable, match="no two weights are equal"):
            optimize(tmp_path / "made.onnx", tmp_path / "again.onnx", options)
    finally:
        techniques.modules.cache_clear()


def write_graph(path: Path, weights: npt.NDArray[np.float32]) -> None:
    """Write x @ a @ b, in which a and b have equal values."""
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", len(weights)]) for name in "xy")
    stored = [numpy_helper.from_array(weights, name) for name in "ab"]
    onnx.save(helper.make_model(helper.make_graph(nodes, "example", [x], [y], stored)), path)


def test_the_page_on_params_names_every_key() -> None:
    page = (ROOT / "docs" / "params.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.]+)`", page, re.M))
    wanted = set(ModelParams.model_fields) | {
        "schema_version",
        "tracking.experiment",
        "runtimes",
        "hosts",
        "environments",
    }
    assert documented == wanted
    for name, field in ModelParams.model_fields.items():
        nested = getattr(field.annotation, "model_fields", {})
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert [key for key in nested if f"`{key}`" not in row] == [], name
    sections = {"schema_version", "tracking", "defaults", "models", "runtimes", "hosts", "environments"}
    assert set(Params.model_fields) == sections


def test_links_between_documents_resolve() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
