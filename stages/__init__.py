"""The pipeline: one file a DVC stage, files in, files and one typed report out. `python -m stages.NAME --help`."""

import gc
import importlib.util
import sys

# What imports make, stays: to look through it again and again takes a sixth of a stage's start.
gc.set_threshold(50_000, 20, 20)

if importlib.util.find_spec("pydantic") is None:
    sys.exit(
        f"onward: {sys.executable} has none of the packages that the stages need: run `make setup`, then "
        "`. .venv/bin/activate` (DVC runs each stage with the `python` that is first on PATH)"
    )
