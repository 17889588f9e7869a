"""Shared fixtures: an MLflow store per test, and a copy of the project in which the pipeline runs."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

Command = Callable[..., tuple[int, str, str]]
T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent

# Properties have no deadline, because a busy machine is not a fault.
hypothesis.settings.register_profile("onward", deadline=None)
# For benchmarks/mutants.py: few deterministic examples, without shrinking.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "onward"))

# Commands that tests start find the tools of this environment, but not its settings.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_", "ONWARD_"))]:
    del os.environ[name]
# The job workers of MLflow's servers are for GenAI, and each is a process that imports MLflow.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"


# Test files that take minutes, longest first, so that two workers finish at about the same time.
LONGEST = (
    "test_pipeline", "test_site", "test_docs", "test_fleet_run", "test_pitfalls", "test_benchmarks", "test_corpus",
    "test_team", "test_structure", "test_release", "test_servers", "test_bench", "test_runtimes", "test_verify",
    "test_stages", "test_field_cases", "test_servable", "test_newest",
)  # fmt: skip


# Test files that start gRPC, servers or torch in the test process run last: stages fork, and a fork of a process with
# such threads may hang.
LAST = (
    "test_serve_traffic", "test_monitor", "test_light", "test_serve_batching", "test_serve", "test_live_monitor",
    "test_serve_agreement", "test_serve_at_once", "test_serve_clients", "test_serve_protocol", "test_serve_tracing",
    "test_recording", "test_other_servers", "test_tracing", "test_opinions", "test_signature", "test_rebuilt",
    "test_operators",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "torch" in sys.modules:  # torch threads do not survive a fork (stages/workers/isolated_call.py)
        sys.modules["torch"].set_num_threads(1)
    items.sort(key=lambda item: _place(item.path.stem))


def _place(name: str) -> int:
    if name in LONGEST:
        return LONGEST.index(name)
    return len(LONGEST) + (LAST.index(name) + 1 if name in LAST else 0)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with empty tables. Creating one takes seconds; copying it is fast."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture(scope="session")
def openvino() -> Path:
    """The interpreter of the environment with ONNX Runtime's OpenVINO provider, which is created if it is missing."""
    from onward.registry.host import environments

    environments.install("openvino", ROOT)
    return environments.python("openvino", ROOT)


@pytest.fixture(scope="session")
def native() -> Path:
    """The interpreter of the environment with the package openvino, which is created if it is missing."""
    from onward.registry.host import environments

    environments.install("openvino-native", ROOT)
    return environments.python("openvino-native", ROOT)


@pytest.fixture(scope="session")
def tritonclient() -> Path:
    """The interpreter of an environment with the package tritonclient, which is created if it is missing."""
    from onward.registry.host import environments

    environments.install("tritonclient", ROOT / "tests" / "clients")
    return environments.python("tritonclient", ROOT / "tests" / "clients")


@pytest.fixture
def store_uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow store and a cache for one test, both configured."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ONWARD_ACTOR", "tester")
    return uri


@functools.cache
def _import_exporters() -> None:
    """Import what the exporters import. Stages run in forks of this process, which inherit it: 2 s less for each."""
    import onnxscript  # noqa: F401
    import torch
    from torch.onnx._internal.exporter import _core, _registration  # noqa: F401

    torch.set_num_threads(1)  # torch threads do not survive a fork
    _registration.ONNXRegistry.from_torchlib()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project in which stages run as in a checkout; the test writes models/ and params.yaml."""
    _import_exporters()
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
    """Run the console entry point; returns (exit code, stdout, stderr)."""
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


class Receiver(http.server.ThreadingHTTPServer):
    """A web server that records what it receives."""

    codes: list[int]
    got: list[tuple[str, str | None, Any]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A web server that answers with `codes` in order, repeats the last one, and records requests in `got`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        server: Receiver

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            codes = self.server.codes
            self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.server.got.append((self.path, "GET", {}))

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = Receiver(("127.0.0.1", 0), Handler)
    server.codes, server.got = [204], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def not_none(value: T | None) -> T:
    """Return `value`, which must not be None."""
    assert value is not None
    return value


def forget_models() -> None:
    """Forget the `models` package, because each test has its own."""
    for name in [name for name in sys.modules if name == "models" or name.startswith("models.")]:
        del sys.modules[name]


def clone(target: Path) -> Path:
    """Copy the files that git tracks or would track into a new repository, as a new user would have it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        source = ROOT / name
        if (source.is_file() or source.is_symlink()) and name != "dvc.lock":  # its results are local
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    subprocess.run(["git", "init", "-q", "."], cwd=target, check=True)
    subprocess.run(["git", "add", "-A"], cwd=target, check=True)
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", *author, "commit", "-qm", "all"], cwd=target, check=True)
    return target


def run(command: str, cwd: Path, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a project; stdout contains stderr too."""
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
