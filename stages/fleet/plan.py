"""What a fleet runs: the commit, the settings of each model, and what is known from earlier runs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from onward.registry import checkout
from onward.registry.errors import MachineFault, NotReady, UsageError
from onward.registry.evidence.host_class import HostClass
from onward.registry.files import contents, write_atomically
from onward.registry.text import suggestion
from onward.stages.config.load import parse
from onward.stages.fleet import dvc_data, locks
from onward.stages.fleet.clone_process import path_with_this_python
from onward.stages.fleet.packed import PARAMS, Pack, clone, pack
from onward.stages.fleet.phases import Progress

# The stages that are about no model.
COMMON = ("params", "host", "tracking")
# The files that the stages of all models read. The settings of a model's stages are in build/params/MODEL/.
_SHARED = (
    "build/params/checked.txt", "build/params/host.json", "build/params/tracking.json", "build/tracking/store.json",
)  # fmt: skip
# The states of models whose results say the same if they run again.
FINAL = ("passed", "failed")


@dataclass(frozen=True)
class Plan:
    """What a fleet runs.

    Attributes:
        pack: The commit.
        code: The digest of the Onward that runs.
        models: The models to run, in the order of params.yaml.
        files: By model, the files to write into its clones.
        hosts: The classes of machines to measure on.
        cache: The folder of the checkout's DVC cache.
        has_remote: Whether DVC has a default remote.
    """

    pack: Pack
    code: str
    models: list[str]
    files: dict[str, dict[str, bytes]]
    hosts: dict[str, HostClass]
    cache: str
    has_remote: bool

    @functools.cached_property
    def keys(self) -> dict[str, str]:
        """By model, a digest of what its results depend on: the settings of its stages, the code, the store."""
        return {model: self._key(files) for model, files in self.files.items()}

    def _key(self, files: Mapping[str, bytes]) -> str:
        content = "".join(f"{path}\0{data.hex()}\n" for path, data in sorted(files.items()))
        return hashlib.sha256(f"{self.code}\n{content}".encode()).hexdigest()


def make(models: Sequence[str], commit: str, store: str) -> Plan:
    """Check a commit's params.yaml, and make the settings of each model's stages.

    Args:
        models: The models to run; empty for all of params.yaml.
        commit: The commit's sha1.
        store: The URI of the MLflow store, with credentials.

    Returns:
        The plan.

    Raises:
        UsageError: There is no such model, or params.yaml has mistakes.
    """
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory(prefix="onward-fleet-") as folder:
        top = Path(folder)
        clone(commit, top)
        packed = pack(commit, top)
        project = top / packed.project
        cache, has_remote = _dvc()
        with Repo(str(top), config={"cache": {"dir": cache}}) as repo:
            dvc_data.bring(repo, has_remote)
        _python(project, store, "-m", "onward.stages", "params")
        _python(project, store, "-m", "onward.stages", "tracking")
        code = _python(project, store, "-c", "from onward.stages.config.code import installed; print(installed())")
        raw, settings = parse(project / PARAMS), project / "build" / "params"
        chosen = _chosen(models, list(raw["models"]))
        shared = {path: (project / path).read_bytes() for path in _SHARED}
        files = {
            model: {
                **shared,
                **{f"build/params/{model}/{name}": data for name, data in contents(settings / model).items()},
                PARAMS: json.dumps({**raw, "models": {model: raw["models"][model]}}, indent=1, default=str).encode(),
            }
            for model in chosen
        }
        classes = {name: HostClass.model_validate(host) for name, host in (raw.get("hosts") or {}).items()}
        return Plan(packed, code, chosen, files, classes, cache, has_remote)


def known(plan: Plan) -> dict[str, Progress]:
    """Load what is known about the models: the entries of dvc.lock, and what earlier runs found.

    A model is in a final state only if an earlier run has ended it with the same settings, code and store.

    Args:
        plan: The plan.
    """
    by_model = locks.by_model(locks.load(checkout.root() / locks.LOCK))
    found = {}
    for model in plan.models:
        key, before = _saved(model)
        if before is not None and key == plan.keys[model] and before.state in FINAL:
            found[model] = before
            continue
        found[model] = Progress(model, lock=by_model.get(model, {}))
        if before is not None:
            found[model].lock = {**found[model].lock, **before.lock}
            found[model].elsewhere = before.elsewhere
            found[model].seconds = before.seconds
    return found


def remember(plan: Plan, progress: Progress) -> None:
    """Save what is known about a model, so that another run goes on from here.

    Args:
        plan: The plan.
        progress: The model's progress.
    """
    content = {"key": plan.keys[progress.model], "progress": asdict(progress)}
    write_atomically(_state(progress.model), json.dumps(content).encode())


def complete_checkout() -> None:
    """Run the stages that are about no model in the checkout, if they never ran there. `dvc checkout` needs them.

    Raises:
        MachineFault: DVC cannot run them.
    """
    project = checkout.root()
    if set(COMMON) <= set(locks.load(project / locks.LOCK)):
        return
    environment = {**os.environ, "PATH": path_with_this_python()}
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *COMMON]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise MachineFault(
            f"dvc.lock was written, but `dvc repro {' '.join(COMMON)}` failed: {done.stderr.strip()[-500:]}"
        )


def _state(model: str) -> Path:
    return dvc_root() / ".dvc" / "tmp" / "onward-fleet" / f"{model}.json"


def _saved(model: str) -> tuple[str, Progress | None]:
    """The key and progress that `remember` saved; None if there is none, or another version of Onward wrote it."""
    try:
        content = json.loads(_state(model).read_bytes())
        return content["key"], Progress(**content["progress"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return "", None


def dvc_root() -> Path:
    """Find the folder with the project's `.dvc`.

    Raises:
        NotReady: There is none.
    """
    root = checkout.root()
    for folder in (root, *root.parents):
        if (folder / ".dvc").is_dir():
            return folder
    raise NotReady(f"{root}: there is no DVC here: run `dvc init`")


def _dvc() -> tuple[str, bool]:
    """The folder of the checkout's DVC cache, and whether DVC has a default remote."""
    from dvc.repo import Repo

    with Repo(str(dvc_root())) as repo:
        return repo.cache.local_cache_dir, bool(repo.config["core"].get("remote"))


def _python(project: Path, store: str, *arguments: str) -> str:
    """The output of a Python process in a clone.

    Raises:
        UsageError: It failed; the message is what it printed.
    """
    environment = {**os.environ, checkout.PROJECT: str(project), "MLFLOW_TRACKING_URI": store}
    done = subprocess.run([sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(done.stderr.strip() or f"{' '.join(arguments)} failed with code {done.returncode}")
    return done.stdout.strip()


def _chosen(wanted: Sequence[str], models: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in models:
            raise UsageError(f"params.yaml: models.{name}: there is no such model" + suggestion(name, models))
    return [model for model in models if not wanted or model in wanted]
