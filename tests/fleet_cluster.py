"""Small projects for fleets, and Ray clusters of nodes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.conftest import clone, run
from tests.servers import free_port, wait_until
from tests.toy import SOURCE, toy_params

BRANCHING = """

class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else -self.a(x)

def branching():
    torch.manual_seed(0)
    return Branching()
"""


def project(target: Path, hosts: dict[str, Any], **models: dict[str, Any]) -> Path:
    """A committed clone with small models, which differ from the toy in the given keys."""
    root = clone(target)
    (root / "models" / "toy.py").write_text(SOURCE + BRANCHING)
    params = toy_params(optimize={"candidates": ["onnxsim"]}, quantize={"candidates": ["dynamic"]})
    toy = params["models"].pop("toy")
    toy["benchmark"] |= {"search_seconds": 1, "race_seconds": 1, "torch_compile": False}
    params |= {"runtimes": ["cpu"], "hosts": hosts, "models": {name: {**toy, **keys} for name, keys in models.items()}}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(root)
    return root


def commit(root: Path) -> None:
    author = "git config user.name Test; git config user.email test@example.invalid"
    done = run(f"{author}; git add -A; git commit -qm all", root)
    assert done.returncode == 0, done.stdout


@contextmanager
def node(root: Path, address: str, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`onward fleet node` until the end of the block."""
    with open(root.parent / f"{arguments[-1]}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "onward.cli", "fleet", "node", address, "--", *arguments],
            cwd=root, env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a node as a power failure does."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    return any(one.laddr.port == port and one.status == "LISTEN" for one in psutil.net_connections() if one.laddr)


class Cluster:
    """A head without CPUs, and nodes with one CPU and a DVC cache each.

    Args:
        root: The project that fleets run.
        folder: Where the nodes keep their caches.
        names: The names of the nodes.
        held: Ends all of them.
    """

    def __init__(self, root: Path, folder: Path, names: list[str], held: ExitStack) -> None:
        self.root, self._folder, self._held = root, folder, held
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        nothing = ["--port", str(port), "--num-cpus", "0", "--resources", "{}", "--node-name", "head-node"]
        head = held.enter_context(node(root, "head", "--include-dashboard", "false", *nothing))
        wait_until(lambda: head.poll() is not None or is_listening(port))
        self.nodes = {name: self.start(name) for name in names}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a node, also one that was killed."""
        arguments, cache = ["--num-cpus", "1", "--node-name", name], str(self._folder / name)
        log = self.root.parent / f"{name}.log"
        for _ in range(3):  # Ray gives a node 30 s to start, which a busy machine may exceed
            made = self._held.enter_context(node(self.root, self.address, *arguments, XDG_CACHE_HOME=cache))
            wait_until(lambda: made.poll() is not None or "Ray runtime started" in log.read_text())  # noqa: B023
            if made.poll() is None:
                return made
        raise RuntimeError(log.read_text()[-2000:])

    def run(self, store: str, answer: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `onward fleet run` on the cluster; its JSON answer goes to a file, and stderr beside it."""
        command = [sys.executable, "-m", "onward.cli", "fleet", "run", "--address", self.address, "--json", *arguments]
        with open(answer, "wb") as output, open(answer.with_suffix(".log"), "wb") as log:
            environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
            return subprocess.Popen(command, cwd=self.root, env=environment, stdout=output, stderr=log)
