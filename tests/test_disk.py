"""Files and folders are replaced atomically."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onward.registry import files
from onward.registry.files import replacing, write_atomically
from tests.conftest import ROOT
from tests.kills import fill, recover, replace, state

WAYS = ["exchange", "renames"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "renames":
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    elif files._renameat2() is None:
        pytest.skip("this system cannot swap two names")
    return str(request.param)


@pytest.mark.parametrize(
    ("fault", "start"),
    [
        *((fault, start) for fault in ("kill", "fail") for start in ("old", "none", "between", "removed")),
        *((fault, "old") for fault in ("strace-kill", "strace-fail")),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_kill_or_error_at_any_step_leaves_the_old_or_the_new_folder(
    tmp_path: Path, way: str, fault: str, start: str
) -> None:
    if fault.startswith("strace") and shutil.which("strace") is None:
        pytest.skip("there is no strace")
    if way == "exchange" and files._renameat2() is None:
        pytest.skip("this system cannot swap two names")
    command = [sys.executable, "-m", "tests.kills", str(tmp_path / "base"), way, fault, start]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "untraceable" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


def test_a_failed_rename_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_renameat2", lambda: None)
    fill(tmp_path / "f", "old")
    rename = os.rename

    def second_fails(source: Path, target: Path) -> None:
        if Path(target).name == "f" and not Path(source).name.endswith(".old"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match=r"f cannot be written: No space left on device") as caught:
        replace(tmp_path / "f", "new")
    assert caught.value.errno == 28
    assert state(tmp_path / "f") == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_reader_always_sees_a_complete_folder(tmp_path: Path) -> None:
    if files._renameat2() is None:
        pytest.skip("this system cannot swap two names")
    folder, words, over = tmp_path / "f", set(), threading.Event()
    replace(folder, "0")

    def read() -> None:
        while not over.is_set():
            handle = os.open(folder, os.O_RDONLY)  # fails if the path does not exist
            os.close(handle)
            words.add("seen")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        replace(folder, str(number))
    over.set()
    reader.join()
    assert words == {"seen"}
    assert state(folder) == "99"


def test_the_scratch_folder_of_a_running_process_is_kept(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "f"
    with replacing(folder) as fresh:
        fill(fresh, "slow")
        replace(folder, "quick")
        assert state(fresh) == "slow"
        assert state(folder) == "quick"
    assert state(folder) == "slow"
    assert os.listdir(tmp_path) == ["f"]


def test_the_scratch_folder_of_another_machine_is_kept_until_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    theirs, aside = tmp_path / ".f.00000000.0123456789abcdef", tmp_path / ".f.00000000.fedcba9876543210.old"
    fill(theirs, "half")
    fill(aside, "aside")
    recover(folder)
    assert state(folder) == "none"
    replace(folder, "ours")
    assert state(theirs) == "half"
    now = time.time()
    shutil.rmtree(folder)
    monkeypatch.setattr(time, "time", lambda: now + 120)
    recover(folder)
    assert state(folder) == "aside"
    assert state(theirs) == "half"
    monkeypatch.setattr(time, "time", lambda: now + 2 * 86400)
    recover(folder)
    assert os.listdir(tmp_path) == ["f"]


def test_folders_with_similar_names_are_kept(tmp_path: Path) -> None:
    names = [
        ".f.json.0123456789abcdef",
        ".f.hidden",
        "f.00000000.0123456789abcdef",
        f".f.g.{files._machine()}.{'0' * 16}",
    ]
    for name in names:
        fill(tmp_path / name, "other")
    replace(tmp_path / "f", "new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "f"])


def test_an_error_in_the_body_keeps_the_old_folder(tmp_path: Path, way: str) -> None:
    replace(tmp_path / "f", "old")
    recover(tmp_path / "f")
    assert state(tmp_path / "f") == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_modes_are_kept_and_new_ones_follow_the_umask(tmp_path: Path, way: str) -> None:
    before = os.umask(0o027)
    try:
        replace(tmp_path / "f", "one")
        write_atomically(tmp_path / "file", b"one")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("f", "file")] == [0o750, 0o640]
    (tmp_path / "f").chmod(0o711)
    (tmp_path / "file").chmod(0o604)
    replace(tmp_path / "f", "two")
    write_atomically(tmp_path / "file", b"two")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("f", "file")] == [0o711, 0o604]
    assert (state(tmp_path / "f"), (tmp_path / "file").read_bytes()) == ("two", b"two")


def test_links_stay_links(tmp_path: Path, way: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    replace(tmp_path / "elsewhere" / "folder", "one")
    (tmp_path / "f").symlink_to("elsewhere/folder")
    (tmp_path / "file").symlink_to("elsewhere/content")
    replace(tmp_path / "f", "two")
    write_atomically(tmp_path / "file", b"two")
    assert (tmp_path / "f").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert state(tmp_path / "elsewhere" / "folder") == "two"
    assert (tmp_path / "elsewhere" / "content").read_bytes() == b"two"


def test_a_file_in_the_place_of_a_folder_is_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "f").write_text("a file")
    replace(tmp_path / "f", "new")
    assert state(tmp_path / "f") == "new"
    assert os.listdir(tmp_path) == ["f"]


def test_an_error_names_the_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_atomically(path, b""), recover):
        with pytest.raises(NotADirectoryError, match=r"file/x/y cannot be written: Not a directory"):
            write(tmp_path / "file" / "x" / "y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder cannot be written: Is a directory"):
        write_atomically(tmp_path / "folder", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
