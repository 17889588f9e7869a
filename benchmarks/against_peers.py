"""Compare Onward with Microsoft Olive and Optimum on eight architectures: speed and quality on this machine.

    python -m benchmarks.against_peers [--only ARCH ...] [--rounds N] [--peers-folder FOLDER] [--report]

Installs each peer in its own environment, runs its commands and Onward's stages on the same exports, and times all
files in interleaved rounds. Made files are kept in the folder, and made again only if their inputs change. Results are
kept in against_peers.json, so architectures can be measured one by one. benchmarks/against_peers.md lists every target,
what was measured, and whether the target is met.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from benchmarks import predict
from benchmarks.peers import command, environments, making, measuring, pipeline, repeats
from benchmarks.peers.judging import REPEATS, rows
from benchmarks.peers.recipes import ARCHITECTURES, FROM_HUB, INSTALLED, OLIVE, recipes
from benchmarks.peers.results import Hosts, Measured, kind_of
from benchmarks.peers.writing import report
from onward.registry.errors import OnwardError
from onward.registry.files import write_atomically
from onward.registry.host.hardware import instruction_sets

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "against_peers.json", HERE / "against_peers.md"
REPEATED = "cnn"
PREDICT_ROUNDS = 400
T = TypeVar("T")


def main() -> int:
    """Measure, write both files; return 1 if a target is missed."""
    arguments = _arguments()
    folder: Path = arguments.peers_folder.resolve()
    hosts = command.read(RESULTS)
    measured = hosts.of(kind_of(instruction_sets()))
    if not arguments.report:
        _measure(hosts, measured, arguments, folder)
    write_atomically(TABLE, report(hosts).encode())
    return command.conclude(rows(measured), TABLE)


def _arguments() -> argparse.Namespace:
    about = (__doc__ or "").splitlines()[0]
    parser = command.parser("against_peers", about, ARCHITECTURES, "ARCH")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often the choice is repeated; 0: never")
    return command.parsed(parser)


def _measure(hosts: Hosts, measured: Measured, arguments: argparse.Namespace, folder: Path) -> None:
    place = folder / "project"
    os.environ["ONWARD_PROJECT"] = str(place)  # the stages, also in this process, use that project
    hub = attempt(measured, "minilm", lambda: environments.hub_folder(folder))
    pipeline.lay(place, pipeline.HERE / "project")
    if hub is not None:
        pipeline.bring_weights(hub, place / "weights")
    attempt(measured, "runtimes", lambda: pipeline.install_runtimes(place))
    pythons: dict[str, Path] = {}
    for peer in INSTALLED:
        python = attempt(measured, peer, functools.partial(environments.environment, peer, folder))
        if python is not None:
            pythons[peer] = python
            measured.versions |= peer_versions(peer, python)
    measured.versions |= {name: version(name) for name in ("torch", "onnxruntime")}
    for architecture in arguments.only:
        if architecture in FROM_HUB and hub is None:
            continue
        attempt(
            measured,
            architecture,
            functools.partial(_one, measured, architecture, arguments.rounds, pythons, hub, folder),
        )
        _save(hosts)
    if arguments.repeats and REPEATED in arguments.only:
        found = attempt(
            measured, "repeats", lambda: repeats.measure(place, REPEATED, arguments.repeats, arguments.rounds)
        )
        measured.repeats = found or measured.repeats
        _save(hosts)
    if "classifier" in arguments.only:
        measured.predict_overhead_us = max(more for _, _, more, _, _ in predict.measure(PREDICT_ROUNDS))
        _save(hosts)


def _one(
    measured: Measured, architecture: str, rounds: int, pythons: dict[str, Path], hub: Path | None, folder: Path
) -> None:
    """Run Onward's stages and the peers' recipes for an architecture, and race the results."""
    place = folder / "project"
    before = pipeline.repro(place, architecture, pipeline.BEFORE)
    built = place / "build" / architecture
    given = making.Given(
        built / "export" / "model.onnx",
        built / "data" / "calibration.npz",
        hub if architecture in FROM_HUB else None,
    )
    outcomes = []
    for recipe in recipes(architecture):
        if recipe.peer in pythons:
            at = folder / "made" / architecture / f"{recipe.peer}-{recipe.name}"
            outcomes.append(making.make(recipe, given, pythons[recipe.peer], at))
        else:
            reason = f"not installed: {measured.not_measured[recipe.peer]}"
            outcomes.append(making.Outcome(recipe.peer, recipe.name, 0.0, reason=reason))
    if given.hub is None:
        searched = pipeline.repro(place, architecture, pipeline.SEARCH)
    else:
        cosine = measuring.fidelity_of_fastest(architecture, outcomes)
        if cosine is not None:
            pipeline.hold_to(place, architecture, cosine)
        searched = _search_beside_olive(measured, architecture, pythons, given.hub, folder)
    result = measuring.measure(architecture, outcomes, rounds)
    result.stages = {**before, **searched}
    measured.results[architecture] = result


def _search_beside_olive(
    measured: Measured, architecture: str, pythons: dict[str, Path], hub: Path, folder: Path
) -> dict[str, float]:
    """Run Onward's search again, between two runs of Olive's commands; return the seconds of Onward's stages.

    The speed of a machine changes from minute to minute, so Olive's time is the mean of the two runs.
    """

    def commands() -> float | None:
        made = folder / "made" / "commands"
        if OLIVE not in pythons:
            return None
        return attempt(measured, "olive's commands", lambda: making.olive_commands(hub, pythons[OLIVE], made))

    before = commands()
    searched = pipeline.repro(folder / "project", architecture, pipeline.SEARCH, force=True)
    after = commands()
    measured.olive_commands_s = round((before + after) / 2, 1) if before and after else None
    return searched


def attempt(measured: Measured, what: str, do: Callable[[], T]) -> T | None:
    """The result of `do`. If it fails, print the reason, keep it for the table, and return None."""
    measured.not_measured.pop(what, None)
    try:
        return do()
    except OnwardError as error:
        print(f"{what}: {error}", file=sys.stderr, flush=True)
        measured.not_measured[what] = str(error).splitlines()[0]
        return None


def peer_versions(peer: str, python: Path) -> dict[str, str]:
    """The versions of a peer's own packages, by name."""
    found = environments.versions(python)
    names = {"olive": ("olive-ai",), "optimum": ("optimum", "optimum-onnx"), "openvino": ("openvino", "nncf")}[peer]
    return {name: found[name] for name in names if name in found}


def _save(hosts: Hosts) -> None:
    command.save(hosts, RESULTS, TABLE, report(hosts))


if __name__ == "__main__":
    sys.exit(main())
