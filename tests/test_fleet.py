"""The parts of `onward fleet` that need no cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.errors import NotReady, UsageError
from onward.registry.evidence.host_class import HostClass
from onward.registry.evidence.records import Machine
from onward.stages.fleet import cluster, hosts, locks, packed
from onward.stages.fleet.phases import FINISH, MEASURE, PREPARE, Event, Progress
from onward.stages.fleet.table import mean_seconds, seconds_left, summary
from onward.stages.fleet.tasks import Board

MACHINE = Machine(
    cpu="Xeon 8488C", instruction_sets=["avx2", "avx512_vnni"], cores=8, memory_gb=32, system="Linux x86_64"
)
NAMES = st.text("abcdefgh-_0123456789", min_size=1, max_size=8)
ENTRIES = st.dictionaries(NAMES, st.dictionaries(NAMES, st.text(max_size=5) | st.integers(), max_size=3), max_size=4)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with two models in params.yaml, in a folder of its repository."""
    project = tmp_path / "repository" / "onward"
    project.mkdir(parents=True)
    (project / "dvc.yaml").write_text("stages: {params: {cmd: python -m onward.stages params}}\n")
    (project / "params.yaml").write_text("models: {a: {seed: 1}, b: {seed: 2}}\n")
    (tmp_path / "repository" / ".dvc").mkdir()
    (tmp_path / "repository" / ".dvc" / "config").write_text("")
    git(tmp_path / "repository", "init", "-q")
    git(tmp_path / "repository", "add", "-A")
    git(tmp_path / "repository", "commit", "-qm", "first")
    monkeypatch.chdir(project)
    return tmp_path / "repository"


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    return subprocess.run(
        ["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@given(before=ENTRIES, parts=st.lists(ENTRIES, max_size=3))
def test_a_lock_file_keeps_all_that_no_model_replaced(before: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dvc.lock"
        locks.update(path, [before])
        locks.update(path, parts)
        expected = dict(before)
        for part in parts:
            expected.update(part)
        assert locks.load(path) == expected
        assert list(locks.load(path))[: len(before)] == list(before)  # the order stays, so that git shows what changed
        assert yaml.safe_load(path.read_text())["schema"] == "2.0"


def test_the_entries_of_a_model_are_those_of_its_stages() -> None:
    entries = {"train@a": 1, "train@ab": 2, "params": 3, "data@a": 4}
    assert locks.by_model(entries)["a"] == {"train@a": 1, "data@a": 4}


def test_a_lock_file_keeps_other_sections(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\ndatasets: [{name: x}]\nstages: {}\n")
    locks.update(tmp_path / "dvc.lock", [{"train@a": {"cmd": "x"}}])
    assert yaml.safe_load((tmp_path / "dvc.lock").read_text())["datasets"] == [{"name": "x"}]


@pytest.mark.parametrize("text", ["[1]", "stages: 3", "a: b: c"])
def test_a_file_that_is_no_lock_file_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(UsageError, match="not a lock file of DVC"):
        locks.load(tmp_path / "dvc.lock")
    with pytest.raises(UsageError, match="not a lock file of DVC"):
        locks.update(tmp_path / "dvc.lock", [])
    assert (tmp_path / "dvc.lock").read_text() == text


@pytest.mark.parametrize(
    ("host", "lacks"),
    [
        ({"instruction_sets": "avx512_vnni", "cores": 8}, ""),
        ({"instruction_sets": ["avx2", "amx_int8"]}, "amx_int8 is missing"),
        ({"cores": 4}, "it has 8 cores and not 4"),
        ({"cpu": "xeon"}, ""),
        ({"cpu": "EPYC"}, "its CPU is Xeon 8488C and not EPYC"),
        ({"accelerator": "L4"}, "it has no accelerator L4"),
    ],
)
def test_a_machine_is_of_a_class_or_it_is_said_what_it_lacks(host: dict[str, Any], lacks: str) -> None:
    known = HostClass.model_validate(host)
    assert known.lacks(MACHINE) == lacks
    offered = hosts.offered(MACHINE, {"serving": known})
    assert ("onward_host_serving" in offered) == (not lacks)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({}, "name at least one of"),
        ({"instruction_sets": "avx512_vni"}, "there is no 'avx512_vni'; did you mean 'avx512_vnni'"),
        ({"core": 8}, "core"),
    ],
)
def test_a_mistake_in_a_class_of_hosts_is_reported(host: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostClass.model_validate(host)


def test_a_measurement_leaves_no_room_on_its_machine_and_other_tasks_leave_none_for_it() -> None:
    measured = hosts.wanted(MEASURE, "serving", 4)
    other = hosts.wanted(PREPARE, None, 4)
    assert measured["resources"]["onward_node"] == 1.0
    assert measured["resources"]["onward_host_serving"] > 0
    assert measured["num_cpus"] == 0  # all of the machine is held through onward_node
    assert 0 < other["resources"]["onward_node"] < 1.0
    assert other["num_cpus"] == 4


def test_a_cluster_without_the_machines_that_a_run_needs_is_reported_before_it_starts() -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    with pytest.raises(NotReady, match="offers the resource onward_node"):
        cluster.require_hosts([node(CPU=4), node(alive=False, CPU=4, onward_node=1)], [], 1)
    with pytest.raises(NotReady, match="has 8 CPUs"):
        cluster.require_hosts([node(CPU=4, onward_node=1)], [], 8)
    with pytest.raises(NotReady, match=r"hosts\.serving"):
        cluster.require_hosts([node(CPU=4, onward_node=1)], ["serving"], 1)
    cluster.require_hosts([node(CPU=4, onward_node=1, onward_host_serving=1)], ["serving"], 2)


def test_the_board_goes_on_after_the_last_stage_and_refuses_messages_of_lost_attempts() -> None:
    board = Board({"cnn": Progress("cnn", lock={"train@cnn": {"cmd": "old"}})})
    first, lock = board.begin("cnn", PREPARE, "one", "")
    assert lock == {"train@cnn": {"cmd": "old"}}
    done = Event(stage="train", computed=True, seconds=3.0, lock={"train@cnn": {"cmd": "new"}})
    assert board.report("cnn", "", first, Event(stage="train", state="running"))
    assert board.report("cnn", "", first, done)
    second, lock = board.begin("cnn", PREPARE, "two", "")
    assert lock == {"train@cnn": {"cmd": "new"}}
    assert not board.report("cnn", "", first, Event(stage="data", computed=True, lock={"data@cnn": {}}))
    assert board.report("cnn", "", second, Event(stage="data", seconds=0.1, lock={"data@cnn": {"cmd": "x"}}))
    clock, (now,) = board.changes(-1)
    assert (now.done, now.computed, now.nodes) == (["train", "data"], ["train"], {"train": "one", "data": "two"})
    assert set(now.lock) == {"train@cnn", "data@cnn"}
    assert board.changes(clock) == (clock, [])


def test_a_measurement_on_another_class_does_not_start_from_the_main_one() -> None:
    main, edge = {"train@cnn": {"cmd": "t"}, "benchmark@cnn": {"cmd": "main"}}, {"benchmark@cnn": {"cmd": "edge"}}
    board = Board({"cnn": Progress("cnn", lock=main)})
    attempt, lock = board.begin("cnn", MEASURE, "one", "edge")
    assert lock == {"train@cnn": {"cmd": "t"}}
    assert board.report("cnn", "edge", attempt, Event(stage="benchmark", seconds=1.0, lock=edge))
    assert board.begin("cnn", MEASURE, "one", "edge")[1] == {**main, **edge}
    assert board.begin("cnn", MEASURE, "two", "")[1] == main


def test_the_time_left_is_the_mean_time_of_the_stages_that_are_not_done() -> None:
    known = Progress("a", state="passed", seconds=dict.fromkeys(
        ("train", "data", "export", "verify", "optimize", "quantize", "benchmark", "select", "publish"), 10.0
    ))  # fmt: skip
    now = Progress("b", state="running", phase=FINISH, stage="select", done=["train", "data", "export"])
    means = mean_seconds([known, Progress("c", seconds={"verify": 20.0})])
    assert means == {**dict.fromkeys(known.seconds, 10.0), "verify": 15.0}
    assert seconds_left(now, means, elapsed=4.0) == 61.0
    assert seconds_left(now, {}, elapsed=4.0) is None
    assert seconds_left(known, means, elapsed=0.0) is None


def test_a_summary_counts_models_by_state() -> None:
    models = [Progress("a", state="passed"), Progress("b", state="failed"), Progress("c")]
    assert summary(models) == "3 models: 1 passed, 1 failed, 1 waiting"


def test_a_clone_has_the_commit_one_model_and_its_settings_and_no_changes_for_git(
    repository: Path, tmp_path: Path
) -> None:
    commit = packed.commit_of(None)
    (tmp_path / "first").mkdir()
    packed.clone(commit, tmp_path / "first")
    pack = packed.pack(commit, tmp_path / "first")
    (tmp_path / "second").mkdir()
    files = {"params.yaml": b'{"models": {"a": {"seed": 1}}}', "build/params/a/train.json": b"{}"}
    project = packed.unpack(pack, files, {"train@a": {"cmd": "x"}}, tmp_path / "second")
    assert project == tmp_path / "second" / "onward"
    assert (project / "params.yaml").read_bytes() == files["params.yaml"]
    assert (project / "build" / "params" / "a" / "train.json").is_file()
    assert locks.load(project / "dvc.lock") == {"train@a": {"cmd": "x"}}
    assert git(project, "rev-parse", "HEAD") == commit
    assert git(project, "status", "--porcelain", "--untracked-files=no") == ""


def test_only_a_commit_is_run(repository: Path) -> None:
    commit = packed.commit_of(None)
    (repository / "onward" / "params.yaml").write_text("models: {}\n")
    with pytest.raises(UsageError, match=r"uncommitted changes in onward/params\.yaml.*--rev HEAD"):
        packed.commit_of(None)
    assert packed.commit_of("HEAD") == commit
    with pytest.raises(UsageError, match="there is no commit nowhere"):
        packed.commit_of("nowhere")


def test_an_option_is_no_revision(repository: Path) -> None:
    with pytest.raises(UsageError, match="there is no commit --help"):
        packed.commit_of("--help")


def test_changes_of_the_lock_file_do_not_prevent_a_run(repository: Path) -> None:
    (repository / "onward" / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "lock")
    (repository / "onward" / "dvc.lock").write_text("schema: '2.0'\nstages: {train@a: {cmd: x}}\n")
    assert packed.commit_of(None)


def test_a_folder_without_git_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {params: {cmd: python -m onward.stages params}}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="git init"):
        packed.commit_of(None)
