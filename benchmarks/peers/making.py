"""Run the peers' commands.

Each recipe has a folder and an outcome, which are kept until the recipe or its input changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.recipes import OLIVE, OPENVINO, OPTIMUM, Recipe, olive_config
from onward.registry.errors import OnwardError
from onward.registry.files import sha256_file, write_atomically

HERE = Path(__file__).parent
TIMEOUT = 900.0


@dataclass
class Outcome:
    """The result of a recipe.

    Attributes:
        peer: the peer's key.
        recipe: the recipe's name.
        seconds: duration of the peer's command, imports included.
        file: path of the made model; empty if there is none.
        reason: why there is no file.
    """

    peer: str
    recipe: str
    seconds: float
    file: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Given:
    """The input of a recipe: the plain export, calibration samples (.npz), and a hub folder if there is one."""

    plain: Path
    samples: Path
    hub: Path | None = None

    def key(self, recipe: Recipe) -> str:
        """A digest of everything that the result of a recipe depends on."""
        parts = [json.dumps(asdict(recipe), sort_keys=True), sha256_file(self.plain)]
        parts += [sha256_file(self.samples)] if recipe.calibrated else []
        parts.append(sha256_file(HERE / f"{recipe.peer}.txt"))
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def make(recipe: Recipe, given: Given, python: Path, folder: Path) -> Outcome:
    """Run a recipe with a peer's `python` in `folder`, or return the kept outcome if nothing has changed."""
    record = folder / "outcome.json"
    key = given.key(recipe)
    if record.is_file():
        known = json.loads(record.read_text())
        if known.pop("key") == key:
            return Outcome(**known)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = {OLIVE: _olive, OPTIMUM: _optimum, OPENVINO: _openvino}[recipe.peer](recipe, given, python, folder)
    print(f"{recipe.peer}: {recipe.name}", file=sys.stderr, flush=True)
    log = folder / "log.txt"
    begun = time.perf_counter()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                command, cwd=folder, env=_offline(), stdout=file, stderr=subprocess.STDOUT, timeout=TIMEOUT
            ).returncode
            reason = "" if code == 0 else last_words(log.read_text(errors="replace")) or f"exit {code}"
        except subprocess.TimeoutExpired:
            reason = f"not done after {TIMEOUT:g} s"
    outcome = Outcome(recipe.peer, recipe.name, round(time.perf_counter() - begun, 1), reason=reason)
    files = (path for path in (folder / "made").rglob("*") if path.suffix in (".onnx", ".xml"))
    made = sorted(files, key=lambda path: path.stat().st_size)
    if not reason and not made:
        outcome.reason = last_words(log.read_text(errors="replace")) or "the command wrote no model"
    elif not reason:
        outcome.file = str(made[-1])
    shutil.rmtree(folder / "cache", ignore_errors=True)
    write_atomically(record, json.dumps({**asdict(outcome), "key": key}, indent=2).encode())
    return outcome


def olive_commands(hub: Path, python: Path, folder: Path) -> float:
    """Time `olive optimize` and then `olive quantize` on a hub folder; return the total seconds.

    Their models are not used, because the recipes make better ones.

    Raises:
        OnwardError: a command failed or timed out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    olive = str(python.parent / "olive")
    optimize = ["optimize", "-m", str(hub), "--task", "feature-extraction", "--precision", "fp32", "-o", "optimized"]
    quantize = ["quantize", "-m", "optimized", "--algorithm", "rtn", "--precision", "int8", "-o", "quantized"]
    begun = time.perf_counter()
    for arguments in ([*optimize, "--exporter", "dynamo_exporter"], [*quantize, "--implementation", "ort"]):
        print(f"olive: the command {arguments[0]}", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                [olive, *arguments], cwd=folder, env=_offline(), capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise OnwardError(f"olive {arguments[0]}: not done after {TIMEOUT:g} s") from None
        if done.returncode:
            raise OnwardError(f"olive {arguments[0]} failed: {last_words(done.stdout + done.stderr)}")
    return round(time.perf_counter() - begun, 1)


def last_words(log: str) -> str:
    """The last line of a log that names an error, with paths shortened to file names; empty if there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line.split(" ")[0] or line.startswith(("Exception", "ERROR"))]
    message = named[-1] if named else ""
    words = [word.rsplit("/", 1)[-1] if word.count("/") > 1 else word for word in message.split()]
    return " ".join(words)[:300]


def _olive(recipe: Recipe, given: Given, python: Path, folder: Path) -> list[str]:
    model = given.hub if recipe.hub else given.plain
    config = olive_config(recipe, str(model), str(HERE / "olive_data.py"), str(given.samples), str(folder))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return [str(python.parent / "olive"), "run", "--config", "config.json"]


def _optimum(recipe: Recipe, given: Given, python: Path, folder: Path) -> list[str]:
    source = folder / "plain"
    source.mkdir()
    shutil.copyfile(given.plain, source / "model.onnx")
    if given.hub is not None:
        shutil.copyfile(given.hub / "config.json", source / "config.json")
    else:
        (source / "config.json").write_text("{}")
    command = [str(python.parent / "optimum-cli"), "onnxruntime", "quantize", "--onnx_model", "plain"]
    return [*command, *recipe.options, "-o", "made"]


def _openvino(recipe: Recipe, given: Given, python: Path, folder: Path) -> list[str]:
    samples = [str(given.samples)] if recipe.calibrated else []
    return [str(python), str(HERE / "openvino_peer.py"), *recipe.options, str(given.plain), "made", *samples]


def _offline() -> dict[str, str]:
    """The environment of a peer's command: without Onward's paths, the hub and telemetry."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ONWARD_PROJECT")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
