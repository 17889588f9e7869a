"""`onward init` adds Onward without changing existing files; `onward upgrade` keeps manual edits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from onward.registry import checkout
from onward.registry.errors import UsageError
from onward.stages.config import load, migrations
from onward.stages.scaffold import generated
from onward.stages.scaffold.upgrade import MERGED
from tests.conftest import ROOT, Command

THEIRS = {
    "params.yaml": "learning_rate: 0.1\n",
    "dvc.yaml": "stages:\n  prepare:\n    cmd: echo hi > hi.txt\n    outs: [hi.txt]\n",
    ".gitignore": "*.bin\n",
    "models/__init__.py": "",
    "stages/__init__.py": "",
    "registry/__init__.py": "",
    "src/nets/__init__.py": "",
    "data/raw/.keep": "",
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A git repository of a team with its own DVC pipeline and packages; the working directory is a subfolder."""
    top = tmp_path / "their work"
    for name, text in THEIRS.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(top)], check=True)
    monkeypatch.chdir(top / "data" / "raw")
    if request.node.get_closest_marker("without_dvc") is None:  # `dvc init` takes seconds
        (top / ".dvc").mkdir()
        (top / ".dvc" / "config").write_text("")
    return top


def files(top: Path) -> set[str]:
    found = {path.relative_to(top) for path in top.rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if path.parts[0] not in (".git", ".dvc")}


@pytest.mark.without_dvc
def test_init_writes_one_folder_and_overwrites_nothing(repository: Path, onward: Command) -> None:
    code, out, _ = onward("init", "--json")
    assert code == 0
    assert {"onward/dvc.yaml", "onward/params.yaml", ".onward-project"} <= set(json.loads(out)["written"])
    assert {name: (repository / name).read_text() for name in THEIRS} == THEIRS
    new = files(repository) - set(THEIRS) - {".dvcignore"}
    assert {name.split("/")[0] for name in new} == {"onward", ".onward-project"}
    assert (repository / ".dvc" / "config").is_file()
    assert checkout.root() == (repository / "onward").resolve()


@pytest.mark.without_dvc
def test_a_dry_run_writes_nothing_and_lists_all_files(repository: Path, onward: Command) -> None:
    _, out, _ = onward("init", "--dry-run", "--ci", "github", "--json")
    assert files(repository) == set(THEIRS)
    assert not (repository / ".dvc").exists()
    assert onward("init", "--ci", "github")[0] == 0
    written = {name for name in json.loads(out)["written"] if not name.endswith("/")}
    assert {name for name in files(repository) - set(THEIRS) if "/.onward/" not in name} - {".dvcignore"} == written


@pytest.mark.parametrize(
    ("taken", "arguments", "message"),
    [
        ("onward/dvc.yaml", (), "onward/dvc.yaml exists already"),
        ("onward/__init__.py", (), "is a Python package of yours"),
        (".github/workflows/onward.yml", ("--ci", "github"), "onward.yml exists already"),
        ("hi.txt", ("../elsewhere",), "lies outside the repository"),
        ("hi.txt", (".",), "dvc.yaml, params.yaml exist already"),
    ],
)
def test_init_refuses_to_overwrite(
    repository: Path, onward: Command, taken: str, arguments: tuple[str, ...], message: str
) -> None:
    (repository / taken).parent.mkdir(parents=True, exist_ok=True)
    (repository / taken).write_text("theirs")
    before = files(repository)
    code, _, err = onward("init", *arguments)
    assert (code, message in err, files(repository)) == (2, True, before)


def test_a_second_init_points_to_upgrade(repository: Path, onward: Command) -> None:
    assert onward("init", "release")[0] == 0
    assert "`onward upgrade`" in onward("init", "release")[2]
    code, _, err = onward("init", "another")
    assert (code, "has an Onward project already" in err) == (2, True)


@pytest.mark.parametrize("git", [True, False])
def test_init_works_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onward: Command, git: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if git:
        subprocess.run(["git", "init", "-q", "."], check=True)
    assert onward("init", ".")[0] == 0
    assert checkout.root() == tmp_path.resolve()
    assert not (tmp_path / checkout.POINTER).exists()
    assert set(load.read().models) == {"example"}


def test_generated_files_match_those_of_this_repository(repository: Path, onward: Command) -> None:
    onward("init", "--ci", "gitlab")
    assert (repository / "onward/dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    assert set(load.read().models) == {"example"}
    assert onward("stage", "params")[0] == 0
    jobs = yaml.safe_load((repository / "onward/gitlab-ci.yml").read_text())
    assert jobs["onward-verify"]["script"] == [
        'dvc repro --glob "onward/dvc.yaml:verify@*"',
        "onward stage verdict --until verify",
    ]


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_ci_pipelines_are_yaml_and_gate_on_parity_and_latency(repository: Path, onward: Command, ci: str) -> None:
    onward("init", "ml/release", "--ci", ci)
    path = {"github": ".github/workflows/onward.yml", "gitlab": "ml/release/gitlab-ci.yml"}[ci]
    text = (repository / path).read_text()
    assert yaml.safe_load(text)
    assert "@FOLDER@" not in text
    assert "@VERSION@" not in text
    for command in ("verdict --until verify", "verdict --until select", 'dvc repro "ml/release/dvc.yaml"'):
        assert command in text


# Simulated files of an older version, for the tests of `upgrade`.
OLD = "# The pipeline of an older version.\nstages: {}\n"


def of_an_older_version(repository: Path, text: str = OLD) -> Path:
    """Make dvc.yaml the unedited file of an older version."""
    project = repository / "onward"
    (project / "dvc.yaml").write_text(text)
    (project / generated.RECORD / "base" / "onward" / "dvc.yaml.base").write_text(text)
    return project / "dvc.yaml"


def actions(out: str) -> dict[str, str]:
    return {change["path"]: change["action"] for change in json.loads(out)}


def test_upgrade_does_not_change_current_files(repository: Path, onward: Command) -> None:
    onward("init")
    (repository / "onward" / "example_model.py").unlink()
    before = files(repository)
    code, out, _ = onward("upgrade", "--json")
    assert code == 0
    assert set(actions(out).values()) == {"unchanged", "deleted by you"}
    assert files(repository) == before


def test_upgrade_rewrites_unedited_files(repository: Path, onward: Command) -> None:
    onward("init")
    pipeline = of_an_older_version(repository)
    code, out, _ = onward("upgrade", "--dry-run")
    assert (code, "+  verdict:" in out, pipeline.read_text()) == (0, True, OLD)
    assert actions(onward("upgrade", "--json")[1])["onward/dvc.yaml"] == "updated"
    assert pipeline.read_text() == (ROOT / "dvc.yaml").read_text()
    assert actions(onward("upgrade", "--json")[1])["onward/dvc.yaml"] == "unchanged"


def test_upgrade_merges_edited_files(repository: Path, onward: Command) -> None:
    onward("init")
    new = (ROOT / "dvc.yaml").read_text()
    older = new.replace("desc: export to ONNX; check the structure", "desc: export to ONNX")
    pipeline = of_an_older_version(repository, older)
    pipeline.write_text(older + "\n# a comment of theirs\n")
    assert actions(onward("upgrade", "--json")[1])["onward/dvc.yaml"] == "merged"
    assert pipeline.read_text() == new + "\n# a comment of theirs\n"


def test_upgrade_leaves_conflicts_for_manual_resolution(repository: Path, onward: Command) -> None:
    onward("init")
    older = (ROOT / "dvc.yaml").read_text().replace("desc: export to ONNX; check the structure", "desc: export to ONNX")
    pipeline = of_an_older_version(repository, older)
    mine = older.replace("desc: export to ONNX", "desc: ours")
    pipeline.write_text(mine)
    for _ in range(2):
        code, out, _ = onward("upgrade")
        assert code == 1
        assert f"conflict: onward/dvc.yaml: see onward/dvc.yaml{MERGED}" in out
        assert pipeline.read_text() == mine
        merged = pipeline.with_name(pipeline.name + MERGED).read_text()
        assert "<<<<<<< yours" in merged
        assert ">>>>>>> generated now" in merged


def test_upgrade_without_git_merges_nothing(repository: Path, onward: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    onward("init")
    pipeline = of_an_older_version(repository)
    pipeline.write_text(OLD + "# theirs\n")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    code, _, err = onward("upgrade")
    assert (code, "no git on PATH" in err, pipeline.read_text()) == (2, True, OLD + "# theirs\n")


def test_upgrade_requires_a_project_created_by_init(project: Path, onward: Command) -> None:
    (project / "params.yaml").write_text("models: {}\n")
    code, _, err = onward("upgrade")
    assert (code, "was not made by `onward init`" in err) == (2, True)


def test_params_of_a_newer_schema_are_rejected(repository: Path, onward: Command) -> None:
    onward("init")
    params = repository / "onward" / "params.yaml"
    params.write_text(params.read_text().replace("schema_version: 1", "schema_version: 2"))
    for command in (("upgrade",), ("stage", "params")):
        assert onward(*command)[0] == 2
    with pytest.raises(UsageError, match=r"schema_version: 2 is newer than this Onward reads"):
        load.read()


def test_params_of_an_older_schema_are_migrated_and_keep_their_comments(
    repository: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    onward("init")
    monkeypatch.setattr(migrations, "VERSION", 2)
    monkeypatch.setitem(migrations.STEPS, 1, lambda content: content.insert(1, "runtime_list", content.pop("runtimes")))
    with pytest.raises(UsageError, match="run `onward upgrade`"):
        load.read()
    assert actions(onward("upgrade", "--json")[1])["onward/params.yaml"] == "updated"
    text = (repository / "onward" / "params.yaml").read_text()
    assert "schema_version: 2" in text
    assert "runtime_list: auto" in text
    assert "# a small classifier" in text


def test_the_project_is_found_from_every_folder_despite_other_pipelines(
    repository: Path, onward: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    onward("init", "ml/release")
    (repository / "src" / "dvc.yaml").write_text("stages: {}\n")
    for folder in ("", "src/nets", "ml/release", "ml"):
        monkeypatch.chdir(repository / folder)
        assert checkout.root() == (repository / "ml/release").resolve()
    (repository / checkout.POINTER).write_text("nowhere\n")
    monkeypatch.chdir(repository / "src")
    with pytest.raises(UsageError, match=r"which contains no dvc\.yaml"):
        checkout.root()


def test_a_project_can_be_given_explicitly(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(checkout.PROJECT, str(tmp_path))
    assert checkout.root() == tmp_path.resolve()
    monkeypatch.setenv(checkout.PROJECT, str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="which is not a folder"):
        checkout.root()


@pytest.fixture
def generated_by_0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the files that version 0.1 generated: `onward init release --ci github`."""
    for name, text in json.loads((ROOT / "tests" / "generated_0_1.json").read_text()).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_version_0_1_are_upgraded_and_edits_kept(generated_by_0_1: Path, onward: Command) -> None:
    project = generated_by_0_1 / "release"
    workflow = generated_by_0_1 / ".github/workflows/onward.yml"
    workflow.write_text(workflow.read_text() + "\n# their own last line\n")
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("rtol: 1.0e-3", "rtol: 1.0e-4"))
    code, out, _ = onward("upgrade", "--json")
    assert (code, "conflict" in actions(out).values()) == (0, False)
    wanted = generated.render("release", "github")
    assert (project / "dvc.yaml").read_text() == wanted["release/dvc.yaml"]
    assert workflow.read_text() == wanted[".github/workflows/onward.yml"] + "\n# their own last line\n"
    assert load.read().models["example"].tolerance.rtol == 1e-4
    assert generated.read_record(project).files.keys() == wanted.keys()
