"""Text from stores, files and models is data: it cannot fake a line, move the cursor, or act as markup."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onward.registry.errors import UsageError
from onward.registry.evidence.reports import VerifyReport
from onward.registry.log.entries import Entry, GateResult
from onward.registry.operations import promotion
from onward.registry.store.store import Store
from onward.registry.text import is_unicode, is_visible, markdown, one_line, printable
from onward.registry.trust import identity
from onward.stages import verdict
from tests.conftest import ROOT, Command, not_none
from tests.store_factory import add_candidate, fresh_store

HOSTILE = "a\x1b[2K\x07\r\n\t\x9b\u202e\u2066\u200b\u2028\ufeff\udcffz"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return fresh_store(tmp_path, monkeypatch)


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.removesuffix("\n").split("\n"))


@given(st.text(st.characters(categories=("C", "Z", "L", "P", "S", "M"))))
def test_printable_gives_one_line_without_control_characters(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]", shown)
    assert printable(shown) == shown
    assert is_unicode(shown)


def test_unprintable_characters_are_escaped_and_others_unchanged() -> None:
    assert printable(HOSTILE) == (r"a\x1b[2K\x07\r\n\t\x9b\u202e\u2066\u200b\u2028\ufeff\udcffz")
    for text in ("déjà vu", "東京", "✅️ 🙂", r"C:\new", "[/red] {x} <b>"):
        assert printable(text) == text


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\u200b \u2060\ufeff", "\u202e", "\u3164", "\u0301", "\x1b\x07"])
def test_an_invisible_reason_is_rejected(text: str) -> None:
    assert not is_visible(text)
    assert one_line(text) == ""
    with pytest.raises(UsageError, match="say why"):
        promotion.valid_reason(text)


def test_a_reason_that_is_not_utf8_is_rejected() -> None:
    with pytest.raises(UsageError, match="not valid UTF-8"):
        promotion.valid_reason("caf\udce9")


def test_the_actor_is_one_line_from_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONWARD_ACTOR", "mallory\n    9  live      boss\x1b[2K")
    assert identity.who() == r"mallory 9 live boss\x1b[2K"
    monkeypatch.setenv("ONWARD_ACTOR", "\u200b")
    assert identity.who() not in ("", "\u200b")
    monkeypatch.delenv("ONWARD_ACTOR")
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nprintf 'b\\351b@x\\nboss\\n'\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert identity.who() == r"b\xe9b@x boss"


def test_an_entry_prints_in_one_line() -> None:
    gate = GateResult(requirement="parity", met=False, detail="no\n  data: passed")
    entry = Entry(
        kind="promote", key="k", base=0, sha256="0" * 64, candidate_version=1, source="", actor=HOSTILE, reason=HOSTILE,
        at="2026-01-02T03:04:05+00:00", number=1, gates=(gate,),
    )  # fmt: skip
    assert harmless(f"{entry}{gate}")
    assert "\n" not in f"{entry}{gate}"


def test_history_and_status_escape_text_of_the_store(store: Store, onward: Command) -> None:
    for factor in (1, 2):
        add_candidate(store, "cnn", factor)
    onward("promote", "cnn", "1", "--to", "staging", "--reason", "good\x1b[2Khidden")
    forged = "x\n    9  2026-11-27 09:00  live      boss promoted version 9"
    store._client.set_model_version_tag("staging.cnn", "1", "actor", forged)
    store._client.set_model_version_tag("cnn", "2", "variant", "x [/layer/MatMul] float32[batch, 4] :warning: \x1b[8m")
    code, out, err = onward("history", "cnn", "--env", "staging")
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    assert harmless(out)
    assert r"x\n    9  2026" in out
    assert r"good\x1b[2Khidden" in out
    code, out, _ = onward("status")
    assert code == 0
    assert r"2 (x [/layer/MatMul] float32[batch, 4] :warning: \x1b[8m)" in out
    code, out, _ = onward("diff", "cnn/1", "cnn/2")
    assert code == 0
    assert "float32[batch, 4]" in out
    assert harmless(out)


def test_mlflow_receives_escaped_text_and_no_markdown(store: Store, onward: Command) -> None:
    add_candidate(store, "cnn")
    onward("promote", "cnn", "1", "--to", "staging", "--reason", "[here](http://x) <img src=x> **now**")
    said = store._client.get_model_version("staging.cnn", "1").description
    assert not_none(said).splitlines()[0].endswith(r": \[here\](http://x) &lt;img src=x> \*\*now\*\*")
    [entry] = store.log("staging", "cnn").entries()
    assert entry.reason == "[here](http://x) <img src=x> **now**"


@given(st.text(st.characters(categories=("L", "P", "S", "Zs", "Cc")), max_size=40))
def test_escaped_markdown_shows_the_original_text(text: str) -> None:
    from markdown_it import MarkdownIt

    wanted = printable(" ".join(text.split()))
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(text))
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    children = tokens[1].children or [] if tokens else []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == wanted.strip()


def test_inspect_escapes_text_of_a_model(onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x\x1b[2J", "y\u202e")]
    node = helper.make_node("Identity", ["x\x1b[2J"], ["y\u202e"])
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name = "me\r\x1b]0;title\x07"
    helper.set_model_props(model, {"note\n": "[bold]\n  sha256      0000"})
    onnx.save(model, "m.onnx")
    code, out, err = onward("inspect", "m.onnx")
    assert (code, err) == (0, "")
    assert harmless(out)
    assert r"x\x1b[2J float32[batch, 4]" in out
    assert r"[bold]\n  sha256" in out


def test_errors_and_arguments_are_escaped(onward: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["inspect", f"{HOSTILE[:-2]}.onnx"],
        ["predict", "m.onnx", "--input", "\x1b[8m\n.npz"],
        [f"--{HOSTILE}"],
        ["history", "cnn", HOSTILE],
        ["promote", "cnn", "--to", "staging"],
    ):
        code, out, err = onward(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert harmless(err)


def test_the_verdict_table_does_not_read_a_name_as_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict, "settings", lambda _: type("Params", (), {"models": ["toy"]}))
    failed = VerifyReport(model="toy", status="failed", reason=f"[/red] off\n{HOSTILE}")
    monkeypatch.setattr(verdict, "found", lambda _: {"verify": failed})
    with pytest.raises(SystemExit):
        verdict.main()
    out = capsys.readouterr().out
    assert r"failed: toy: verify: [/red] off\na\x1b" in out
    assert harmless(out)


_COMMANDS = sorted(path for path in (ROOT / "registry/cli").glob("*.py") if path.name != "output.py")


@pytest.mark.parametrize("path", _COMMANDS, ids=lambda path: path.stem)
def test_commands_print_only_through_the_output_module(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "typer.echo", "typer.secho", "Console", "sys.stdout.write"), node.lineno
            assert not called.startswith(("sys.stderr.", "rich.", "click.")), node.lineno


def test_a_character_missing_from_the_terminal_is_not_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onward.cli", "inspect", "\N{SNOWMAN}.onnx"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(r"onward: \u2603.onnx: there is no such file")
