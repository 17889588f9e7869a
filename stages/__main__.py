"""Runs one stage, as dvc.yaml does: `python -m onward.stages NAME [MODEL]`."""

from __future__ import annotations

import gc
import importlib.util
import os
import runpy
import sys

from onward.registry.errors import INTERRUPTED, READER_GONE

STAGES = (
    "params",
    "host",
    "tracking",
    "train",
    "data",
    "export",
    "verify",
    "optimize",
    "quantize",
    "benchmark",
    "select",
    "publish",
    "verdict",
)


def main() -> None:
    """Run the stage that the first argument names, with the arguments after it."""
    if importlib.util.find_spec("pydantic") is None:
        sys.exit(
            f"onward: {sys.executable} has none of the packages that the stages need: install onward[pipeline] there, "
            "or activate the environment that has them (DVC runs each stage with the `python` that is first on PATH)"
        )
    # The objects that imports make stay; the default thresholds make the collector scan them again and again, which
    # takes a sixth of a stage's start.
    gc.set_threshold(50_000, 20, 20)
    if len(sys.argv) < 2 or sys.argv[1] not in STAGES:
        print(f"usage: python -m onward.stages NAME [MODEL]; NAME is one of {', '.join(STAGES)}", file=sys.stderr)
        sys.exit(2)
    name = sys.argv.pop(1)
    try:
        runpy.run_module(f"onward.stages.{name}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # Ctrl-C; the stage's folder is as it was before
        print(f"interrupted: {' '.join([name, *sys.argv[1:2]])}: nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # prevent another error when Python flushes stdout at exit
        sys.exit(READER_GONE)


if __name__ == "__main__":
    main()
