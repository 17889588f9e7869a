"""What tests share: an MLflow store of their own, and a copy of the project to run the pipeline in."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

Command = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).resolve().parent.parent

# A noisy machine is no finding: properties have no deadline.
hypothesis.settings.register_profile("onward", deadline=None)
# For benchmarks/mutants.py: few examples, the same ones every time, and none made smaller.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "onward"))

# Commands that tests start find the tools of the environment that runs the tests, and none of its settings.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "ONWARD_"))]:
    del os.environ[name]


# The files that take minutes, longest first: two workers that begin with these end together.
LONGEST = (
    "test_pipeline", "test_docs", "test_benchmarks", "test_corpus", "test_release", "test_servers", "test_bench",
    "test_runtimes", "test_verify", "test_stages", "test_field_cases", "test_servable", "test_newest", "test_pitfalls",
)  # fmt: skip


# The files that compute with torch in the test's own process: what is forked after that may hang, and stages fork.
LAST = ("test_tracing", "test_opinions", "test_signature", "test_rebuilt", "test_operators")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "torch" in sys.modules:  # its threads do not survive a fork (stages/workers/isolated_call.py)
        sys.modules["torch"].set_num_threads(1)
    items.sort(key=lambda item: _place(item.path.stem))


def _place(name: str) -> int:
    if name in LONGEST:
        return LONGEST.index(name)
    return len(LONGEST) + (LAST.index(name) + 1 if name in LAST else 0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def store_uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow store of the test's own, and a cache of its own, both in use."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ONWARD_ACTOR", "tester")
    return uri


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project: stages run in it as in a checkout; a test writes its models/ and params.yaml."""
    root = tmp_path / "project"
    (root / "models").mkdir(parents=True)
    (root / "models" / "__init__.py").write_text("")
    shutil.copy(ROOT / "dvc.yaml", root)
    monkeypatch.setenv("ONWARD_PROJECT", str(root))
    monkeypatch.chdir(root)
    forget_models()
    monkeypatch.syspath_prepend(str(root))
    return root


@pytest.fixture(autouse=True)
def _forget_models_afterwards() -> Iterator[None]:
    yield
    forget_models()


@pytest.fixture
def onward(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the console entry point: (exit code, stdout, stderr)."""
    from onward import cli

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onward", *arguments])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def receiver() -> Iterator[http.server.ThreadingHTTPServer]:
    """A web server that answers with the codes of `codes`, the last one again and again, and keeps what it got."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            codes = self.server.codes
            self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.server.got.append((self.path, "GET", {}))

        def log_message(self, *_):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.codes, server.got = [204], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def forget_models() -> None:
    """Each test's `models` package is another one."""
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[name]


def clone(target: Path) -> Path:
    """A copy of the working tree as git sees it, with a git repository of its own, as a new user would have."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        path = ROOT / name
        if (path.is_file() or path.is_symlink()) and name != "dvc.lock":  # that one says what was computed here
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name, follow_symlinks=False)
    subprocess.run(["git", "init", "-q", "."], cwd=target, check=True)
    subprocess.run(["git", "add", "-A"], cwd=target, check=True)
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", *author, "commit", "-qm", "all"], cwd=target, check=True)
    return target


def run(command: str, cwd: Path, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a project and hand back what it printed, stderr included."""
    return subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
