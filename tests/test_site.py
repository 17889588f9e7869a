"""The documentation site: it builds without a broken link, its schema is current, and its commands work.

A page's shell blocks run in order, in one shell. A block with a title is a file. A shell block whose first line is
`# needs ...` is not run; that its commands exist is checked (docs/decisions/0071-commands-in-pages-are-run.md).
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from onward.cli import app
from onward.stages.config.json_schema import schema
from tests.conftest import ROOT, run

DOCS = ROOT / "docs"
TUTORIAL = DOCS / "tutorial.md"
GUIDES = sorted(path for path in (DOCS / "how-to").glob("*.md") if path.stem != "index")
# Guides for a repository without Onward; the others run in the repository of the tutorial.
IN_A_NEW_REPOSITORY = {"your-repository", "ci-gate"}
PORT = "8099"  # of the server in the tutorial
NEEDS = re.compile(r"# needs \w.*\n")
SCHEMA = jsonschema.Draft202012Validator(schema())


@dataclass(frozen=True)
class Block:
    """A block of code of a page: its language, its title if it is a file, and its text."""

    language: str
    title: str
    text: str

    @property
    def is_shell(self) -> bool:
        return self.language == "bash"

    @property
    def runs(self) -> bool:
        return self.is_shell and NEEDS.match(self.text) is None


def blocks(page: Path) -> list[Block]:
    fenced = r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$'
    return [Block(*found) for found in re.findall(fenced, page.read_text(), re.M | re.S)]


def script(page: Path) -> str:
    """A shell script that does what a reader of the page does."""
    lines = ["set -eo pipefail", "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT"]
    for block in blocks(page):
        if block.title:
            lines.append(f"cat > {block.title} <<'END_OF_FILE'\n{block.text}END_OF_FILE")
        elif block.runs:
            lines.append(f"echo '>>> {block.text.splitlines()[0].replace(chr(39), '')}'\n{block.text}")
    return "\n".join(lines)


def follow(page: Path, folder: Path, port: int = 0) -> str:
    """Run the script of a page in a folder; returns what it prints."""
    text = script(page).replace(PORT, str(port)) if port else script(page)
    (folder.parent / f"{page.stem}.sh").write_text(text)
    environment = {
        "PYTHONPATH": str(ROOT / ".editable"),  # this checkout, wherever `onward` is installed from
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "ONWARD_ACTOR": "you",
        "GIT_AUTHOR_NAME": "Test",
        "GIT_COMMITTER_NAME": "Test",
        "GIT_AUTHOR_EMAIL": "test@example.invalid",
        "GIT_COMMITTER_EMAIL": "test@example.invalid",
    }
    variables = [f"{name}={value}" for name, value in environment.items()]
    done = run(shlex.join(["env", *variables, "bash", str(folder.parent / f"{page.stem}.sh")]), folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The repository of the tutorial at its end, and what its commands printed."""
    folder = tmp_path_factory.mktemp("site") / "tutorial"
    folder.mkdir()
    return folder, follow(TUTORIAL, folder, free_port())


@pytest.fixture
def repository(tutorial: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the repository of the tutorial, with its store."""
    folder = tmp_path / "tutorial"
    shutil.copytree(tutorial[0], folder, symlinks=True)
    done = run("onward store move", folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    done = run(f"mkdocs build --quiet --strict --site-dir {tmp_path / 'site'}", ROOT, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stdout
    commands = (tmp_path / "site" / "reference" / "cli.html").read_text()
    assert "onward rollback" in commands
    assert "Why, in one line" in commands
    assert "predict_batches" in (tmp_path / "site" / "reference" / "api.html").read_text()
    assert "quality_drop" in (tmp_path / "site" / "reference" / "params-keys.html").read_text()
    assert (tmp_path / "site" / "benchmarks" / "registry.html").is_file()
    pages = "\n".join(page.read_text() for page in (tmp_path / "site").rglob("*.html"))
    assert "<!-- generated" not in pages
    assert re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="https?:[^"]*"', pages) == []


def test_the_tutorial_runs_as_printed(tutorial: tuple[Path, str]) -> None:
    folder, printed = tutorial
    kinds = [entry["kind"] for entry in history(folder)]
    assert kinds == ["promote", "promote", "rollback"]
    answered = re.findall(r'"model_version":"(\d)"', printed)
    assert answered == ["2", "1"]
    assert (folder / "digits.html").stat().st_size > 10_000


def history(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("onward history digits --json", folder).stdout)["production"]
    return found


@pytest.mark.parametrize("page", sorted(IN_A_NEW_REPOSITORY))
def test_a_guide_works_in_a_new_repository(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    follow(DOCS / "how-to" / f"{page}.md", folder)
    assert (folder / "onward" / "params.yaml").is_file()


@pytest.mark.parametrize("page", sorted({page.stem for page in GUIDES} - IN_A_NEW_REPOSITORY))
def test_a_guide_works_in_the_repository_of_the_tutorial(page: str, repository: Path) -> None:
    follow(DOCS / "how-to" / f"{page}.md", repository)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of `onward` in a shell block, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\||\$\(|>|;|&$", line):
            words = part.strip().rstrip(")").split()
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words[:1] == ["onward"]:
                yield words[1:]


@pytest.mark.parametrize("page", [TUTORIAL, *GUIDES], ids=lambda page: page.stem)
def test_commands_and_options_in_a_page_exist(page: Path) -> None:
    all_blocks = "\n".join(block.text for block in blocks(page) if block.is_shell)
    parsed = subprocess.run(["bash", "-n"], input=all_blocks, text=True, capture_output=True)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    found = 0
    for block in blocks(page):
        for words in commands(block.text) if block.is_shell else ():
            command: Any = get_command(app)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command.name, f"{page.name}: there is no command {words}"
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            if command.name == "stage":  # its options are those of the stage
                continue
            own = words[: words.index("--")] if "--" in words else words  # the rest goes to another program
            options = {word.split("=")[0] for word in own if word.startswith("-")}
            assert options <= known, f"{page.name}: onward {command.name} has no {options - known}"
            found += 1
    assert found


def test_every_shell_block_is_marked_or_runs() -> None:
    """Other names of shell languages would not be found by the tests above."""
    for page in [TUTORIAL, *GUIDES, DOCS / "how-to" / "index.md"]:
        for block in blocks(page):
            assert block.language in ("bash", "python", "yaml", "json", "text"), f"{page.name}: {block.language}"
        assert page.read_text().count("```") == 2 * len(blocks(page)), f"{page.name}: a block that was not recognised"


def test_every_guide_is_in_the_navigation_and_the_list() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    index = (DOCS / "how-to" / "index.md").read_text()
    for page in GUIDES:
        assert f"how-to/{page.name}" in navigation
        assert f"]({page.name})" in index


def test_the_schema_file_is_current() -> None:
    stored = json.loads((DOCS / "params.schema.json").read_text())
    assert stored == json.loads(json.dumps(schema())), "run `make schema`"


def problems(params: Any) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in SCHEMA.iter_errors(params)]


def shipped() -> Any:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def written(page: str) -> Iterator[Any]:
    """The complete examples of a page: its blocks of YAML that are mappings with models."""
    for text in re.findall(r"^```yaml[^\n]*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
        if "..." in text:
            continue
        found = yaml.safe_load(text)
        if isinstance(found, dict):
            model = {key for entry in found.values() if isinstance(entry, dict) for key in entry} & {"build", "onnx"}
            yield found if "models" in found else {"models": found} if model else None


def test_the_schema_accepts_valid_files() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA.schema)
    assert problems(shipped()) == []
    template = ROOT / "stages" / "scaffold" / "templates" / "params.yaml"
    assert problems(yaml.safe_load(template.read_text())) == []
    examples = [
        found
        for page in ("docs/add-your-model.md", "docs/tutorial.md", "docs/params.md", "README.md")
        for found in written(page)
        if found is not None
    ]
    assert len(examples) >= 6
    for example in examples:
        assert problems(example) == []


SHORT_FORMS: list[tuple[str, Any]] = [
    ("seed", "default"),
    ("weights", "weights/net.pt"),
    ("weights", {"file": "weights/net.pt", "key": ["net", "ema"], "strict": False}),
    ("dims", {"batch": {"max": 32, "typical": [{1: 0.9}, {32: 0.1}]}, "total": "past + new"}),
    ("inputs", {"x": {"shape": ["batch", "height / 4"], "sample_axis": "none", "value": 16000}}),
    ("outputs", {"y": {"shape": ["batch", 3], "kind": "values", "axis": -1, "sample_axis": "auto"}}),
    ("optimize", {"candidates": ["onnxsim", "of_a_plug_in"]}),
    ("quantize", {"candidates": [{"dynamic": {"scales": "per_tensor"}}, {"static": None}]}),
    ("quantize", {"candidates": "default", "timeout": "default"}),
    ("tolerance", {"agreement": {"int8": "default"}, "outputs": {"y": {"rtol": 0.1}}}),
]


@pytest.mark.parametrize(("key", "value"), SHORT_FORMS, ids=str)
def test_the_schema_accepts_short_forms(key: str, value: Any) -> None:
    params = copy.deepcopy(shipped())
    params["models"]["cnn"][key] = value
    # YAML's keys may be numbers, which JSON's cannot.
    assert problems(json.loads(json.dumps(params))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models", "cnn", "tolerence"), {}),
        (("models", "cnn", "budget", "quality_dropp"), 0.1),
        (("models", "cnn", "export", "opset"), 3),
        (("models", "cnn", "quantize", "candidates"), [{"dynamic": {"no_such_option": 1}}]),
        (("defaults", "tolerence"), {}),
        (("environments", "staging", "requires"), ["parity"]),
        (("environments", "staging", "require"), ["paritty"]),
        (("runtimes",), ["gpu"]),
        (("model",), {}),
    ],
    ids=str,
)
def test_the_schema_rejects_mistakes(path: tuple[str, ...], value: Any) -> None:
    params = copy.deepcopy(shipped())
    section = params
    for key in path[:-1]:
        section = section.setdefault(key, {})
    section[path[-1]] = value
    assert problems(params)
