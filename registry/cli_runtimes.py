"""`onward runtimes`: which builds of ONNX Runtime there are here, and what they can do. registry/cli.py mounts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry.errors import Refused, UsageError
from registry.printing import Json, print_json, print_table, say

if TYPE_CHECKING:
    from registry.vocabulary import RuntimeState

runtimes = typer.Typer(invoke_without_command=True, help="The runtimes of this checkout, and what they can do here.")


@runtimes.callback(invoke_without_command=True)
def list_runtimes(context: typer.Context, as_json: Json = False) -> None:
    """What each runtime can do on this host: small models are run on it. `install` makes a runtime's environment.

    Example: onward runtimes
    """
    if context.invoked_subcommand is not None:
        return
    from registry import hostinfo
    from registry.runtimes import PROVIDERS, state

    root = _checkout()
    machine = hostinfo.describe()
    found = [state(name, root) for name in PROVIDERS]
    if as_json:
        print_json({"machine": machine.model_dump(), "runtimes": [one.model_dump() for one in found]})
        return
    has = [f"{machine.cores} core{'s' if machine.cores > 1 else ''}", *machine.instruction_sets, *machine.accelerators]
    say(f"{machine.cpu}: {', '.join(has)}")
    rows = [(one.runtime, one.version or "-", PROVIDERS[one.runtime], describe(one)) for one in found]
    print_table(("runtime", "ONNX Runtime", "provider", "here"), rows)


@runtimes.command("install")
def install_runtime(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A file of runtimes/, e.g. openvino.")],
    as_json: Json = False,
) -> None:
    """Make a runtime's environment in .runtimes/NAME from the pins in runtimes/NAME.txt, and try it.

    Example: onward runtimes install openvino
    """
    from registry.runtimes import install, state

    root = _checkout()
    done = install(name, root)
    found = state(name, root)
    if as_json:
        print_json({"installed": done, **found.model_dump()})
    else:
        say(f"{name}: {'installed' if done else 'nothing to install'}; {describe(found)}")
    if not found.usable:
        raise Refused(f"{name} cannot be used on this host: {found.reason}")


def describe(found: RuntimeState) -> str:
    """What a runtime can do, in words."""
    if not found.usable:
        return f"cannot be used: {found.reason}"
    parts = []
    for kind, share in found.node_share.items():
        words = kind if share == 1 else f"{kind} ({share:.0%} of the nodes)" if share else f"no {kind}"
        if kind == "int8" and found.int8_exact is not None:
            words += ", exact" if found.int8_exact else ", saturating (reduce_range helps)"
        parts.append(words)
    return "; ".join(parts)


def _checkout() -> Path:
    from registry.connection import checkout

    try:
        return checkout()
    except UsageError:
        raise UsageError(
            "no dvc.yaml here or above: run the command inside a checkout, which holds runtimes/"
        ) from None
