"""`onward runtimes`: show the runtimes and what they can do on this machine.

registry/cli/main.py adds it to the `onward` command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onward.registry import checkout
from onward.registry.cli.output import Json, print_json, print_table, say
from onward.registry.errors import Refused

if TYPE_CHECKING:
    from onward.registry.evidence.records import RuntimeState

runtimes = typer.Typer(invoke_without_command=True)


@runtimes.callback(invoke_without_command=True)
def list_runtimes(context: typer.Context, as_json: Json = False) -> None:
    """Show or install runtimes: builds of ONNX Runtime, and OpenVINO itself.

    Each runtime has its own Python environment. Without a subcommand, this runs small models on each runtime,
    and shows what it can do on this machine. `onward runtimes install` creates the environment of a runtime.

    Example: onward runtimes
    """
    if context.invoked_subcommand is not None:
        return
    from onward.registry.host import hardware
    from onward.registry.host.runtimes import PROVIDERS, state

    root = checkout.root()
    machine = hardware.describe()
    found = [state(name, root) for name in PROVIDERS]
    if as_json:
        print_json({"machine": machine.model_dump(), "runtimes": [one.model_dump() for one in found]})
        return
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
    say(f"{machine.cpu}: {', '.join([cores, *machine.instruction_sets, *machine.accelerators])}")
    rows = [(one.runtime, one.version or "-", PROVIDERS[one.runtime], describe(one)) for one in found]
    print_table(("runtime", "version", "provider", "here"), rows)


@runtimes.command("install")
def install_runtime(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="openvino, openvino-native, cuda, nncf, or a file of runtimes/ in the project."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Create the environment of a runtime in .runtimes/NAME from its pinned requirements, and test it.

    Example: onward runtimes install openvino
    """
    from onward.registry.host.environments import install
    from onward.registry.host.runtimes import state

    root = checkout.root()
    done = install(name, root)
    found = state(name, root)
    if as_json:
        print_json({"installed": done, **found.model_dump()})
    else:
        say(f"{name}: {'installed' if done else 'nothing to install'}; {describe(found)}")
    if not found.usable:
        raise Refused(f"{name} cannot be used on this machine: {found.reason}")


def describe(found: RuntimeState) -> str:
    """Describe what a runtime can do on this machine.

    Args:
        found: the state of the runtime.
    """
    from onward.registry.host.environments import TOOLS

    if not found.usable:
        return f"cannot be used: {found.reason}"
    if found.runtime in TOOLS:
        return f"{found.version} can be used"
    parts = []
    for kind, share in found.node_share.items():
        part = kind if share == 1 else f"{kind} ({share:.0%} of the nodes)" if share else f"no {kind}"
        if kind == "int8" and found.int8_exact is not None:
            part += ", exact" if found.int8_exact else ", saturating (reduce_range helps)"
        parts.append(part)
    parts += [f"{precision} as an option" for precision in found.precisions]
    return "; ".join(parts)
