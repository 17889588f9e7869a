"""The servers that benchmarks/serving.py compares, all with the same model folder and session threads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from onward.registry.artifact.mlflow_model import build_folder
from onward.registry.artifact.onnx_file import describe
from onward.registry.artifact.serving_plan import MODEL, Served, Serving
from onward.registry.errors import OnwardError
from onward.registry.evidence.session_options import CPU, SessionOptions
from onward.registry.host import environments

ROOT = Path(__file__).resolve().parent.parent
# The folder of MLServer's environment, and its pins.
PEERS = ROOT / ".peers" / "serving"
PINS = ROOT / "benchmarks" / "runtimes" / "mlserver.txt"
# MLServer has no runtime for ONNX, so this one calls session.run between its own decoding and encoding.
_MLSERVER = """
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = {threads}
        self.session = onnxruntime.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        found = self.session.run(None, {{one.name: NumpyCodec.decode_input(one) for one in payload.inputs}})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(self.names, found)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


def free_port() -> int:
    """A port that no program uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def model_folder(name: str, folder: Path, threads: int) -> tuple[Path, dict[str, Any]]:
    """Write the MLflow model of the shipped classifier or transformer with random weights, and one sample for it.

    Args:
        name: "mlp" or "transformer".
        folder: where the files are written.
        threads: the threads of its session.
    """
    from benchmarks.predict import mlp

    file = folder / f"{name}.onnx"
    rng = np.random.default_rng(0)
    if name == "mlp":
        mlp(file)
        sample: dict[str, Any] = {"image": rng.random((1, 784), np.float32)}
    else:
        _transformer(file)
        words = rng.integers(2, 1000, (1, 64)).astype(np.int64)
        sample = {"input_ids": words, "attention_mask": np.ones_like(words)}
    about = describe(file)
    serving = Serving({"cpu": Served(file=MODEL, provider=CPU, options=SessionOptions(threads=threads))})
    build_folder(folder / name, [file], about.inputs, about.outputs, CPU, serving=serving)
    return folder / name, sample


def _transformer(file: Path) -> None:
    """Export the shipped transformer with random weights, in a process of its own: torch changes the threads."""
    code = f"""
import torch
from models.text import Transformer
from torch.export import Dim
torch.manual_seed(0)
words = torch.ones((2, 64), dtype=torch.int64)
torch.onnx.export(Transformer().eval(), (words, words), {str(file)!r}, input_names=["input_ids", "attention_mask"],
    output_names=["logits"], dynamo=True, external_data=False, verbose=False,
    dynamic_shapes=({{0: Dim("batch")}}, {{0: Dim("batch")}}))
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def wait_for_http(url: str, process: subprocess.Popen[Any], log: Path, seconds: float = 120) -> None:
    """Wait until a server answers with 200.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError):
            if urllib.request.urlopen(url, timeout=5).status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer: {log.read_text()[-2000:]}")


def start(command: list[str], url: str, log: Path, **more: Any) -> subprocess.Popen[Any]:
    """Start a server, and wait until it answers."""
    # MLflow's job workers are for GenAI, and each is a process that imports MLflow.
    more["env"] = {**more.get("env", os.environ), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(log, "ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **more)
    try:
        wait_for_http(url, process, log)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process: subprocess.Popen[Any], number: signal.Signals = signal.SIGTERM) -> None:
    """End a server and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def onward(targets: list[str], port: int, grpc_port: int, folder: Path, *options: str) -> subprocess.Popen[Any]:
    """Start `onward serve`, and wait until it is ready."""
    command = [
        sys.executable,
        "-m",
        "onward.cli",
        "serve",
        *targets,
        "--port",
        str(port),
        "--grpc-port",
        str(grpc_port),
    ]
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return start([*command, *options], url, folder / "onward.log", env=environment)


_ECHO = """
import asyncio, sys, grpc.aio, uvloop

class Echo(grpc.GenericRpcHandler):
    def service(self, _):
        async def same(request, _):
            return request
        return grpc.unary_unary_rpc_method_handler(same)

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()

uvloop.run(main())
"""


@contextmanager
def grpc_echo() -> Iterator[int]:
    """Start a gRPC server that returns each request as it is; yields its port."""
    port = free_port()
    with running(subprocess.Popen([sys.executable, "-c", _ECHO, str(port)], start_new_session=True)):
        yield port


@contextmanager
def running(process: subprocess.Popen[Any]) -> Iterator[None]:
    """End a server after the block."""
    try:
        yield
    finally:
        stop(process)


def mlflow_serve(model: Path, port: int, folder: Path) -> subprocess.Popen[Any]:
    """Start `mlflow models serve` in this environment."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model), "--port", str(port)]
    command += ["--env-manager", "local", "--host", "127.0.0.1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return start(command, f"http://127.0.0.1:{port}/ping", folder / "mlflow.log", env={**os.environ, "PATH": path})


def mlserver(name: str, model: Path, threads: int, port: int, folder: Path) -> subprocess.Popen[Any] | None:
    """Start MLServer in an environment of its own; None if it cannot be installed."""
    try:
        (PEERS / "runtimes").mkdir(parents=True, exist_ok=True)
        shutil.copy(PINS, PEERS / "runtimes")
        environments.install("mlserver", PEERS)
    except OnwardError as error:
        print(f"MLServer is left out: {error}", file=sys.stderr)
        return None
    home = folder / f"mlserver-{name}"
    home.mkdir()
    (home / "runtime.py").write_text(_MLSERVER.format(threads=threads, path=str(model / MODEL)))
    (home / "model-settings.json").write_text(json.dumps({"name": name, "implementation": "runtime.Onnx"}))
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
    (home / "settings.json").write_text(json.dumps({"host": "127.0.0.1", **settings}))
    python = environments.python("mlserver", PEERS)
    code = "import sys; from mlserver.cli.main import main; sys.argv[0] = 'mlserver'; main()"
    command = [str(python), "-c", code, "start", str(home)]
    environment = {**os.environ, "PYTHONPATH": str(home)}
    url = f"http://127.0.0.1:{port}/v2/models/{name}/ready"
    try:
        return start(command, url, folder / f"mlserver-{name}.log", env=environment, cwd=home)
    except RuntimeError as error:
        print(f"MLServer is left out: {error}", file=sys.stderr)
        return None
