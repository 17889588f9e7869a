"""Evidently's default drift report on the traffic of benchmarks/drift.py. Runs in Evidently's own environment.

    PYTHON benchmarks/drift_evidently.py WINDOWS

prints one JSON list, with one object per case: the share of windows in which a column drifts, in which the column with
the shift does, and in which the data set does (at least half of the columns).
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from evidently import DataDefinition, Dataset, Report  # noqa: E402
from evidently.presets import DataDriftPreset  # noqa: E402

from benchmarks.drift_streams import CATEGORY, NUMBERS, traffic  # noqa: E402

REFERENCE = 1000
# One report takes about a second, so there are fewer windows than for Onward.
CASES: list[dict[str, Any]] = [
    *[{"n": n} for n in (100, 1000, 10_000, 100_000)],
    {"n": 1000, "correlation": 0.9},
    *[{"n": 1000, "shift": shift} for shift in (0.1, 0.3, 0.5)],
    *[{"n": 1000, "moved": moved} for moved in (0.05, 0.1, 0.2)],
    *[{"n": 100, "shift": shift} for shift in (0.1, 0.3, 0.5)],
]


def dataset(columns: dict[str, Any]) -> Any:
    """The columns in Evidently's form."""
    frame = pd.DataFrame({name: columns[name] for name in (*NUMBERS, CATEGORY)}).astype({CATEGORY: str})
    definition = DataDefinition(numerical_columns=list(NUMBERS), categorical_columns=[CATEGORY])
    return Dataset.from_pandas(frame, data_definition=definition)


def drifted(metrics: list[dict[str, Any]]) -> tuple[set[str], bool]:
    """The columns that drift, and whether the data set does."""
    columns, whole = set(), False
    for metric in metrics:
        config, value = metric["config"], metric["value"]
        if "column" not in config:
            whole = value["share"] >= config["drift_share"]
            continue
        below = value < config["threshold"]
        if below if config["method"].endswith("p_value") else not below:
            columns.add(config["column"])
    return columns, whole


def measure(case: dict[str, Any], windows: int) -> dict[str, Any]:
    """The shares of windows in which something drifts."""
    rng = np.random.default_rng(20)
    count, options = case["n"], {key: value for key, value in case.items() if key != "n"}
    looked_at = "normal" if "shift" in case else CATEGORY
    found = []
    for _ in range(windows):
        current, reference = dataset(traffic(count, rng, **options)), dataset(traffic(REFERENCE, rng))
        report = Report([DataDriftPreset()]).run(current, reference)
        found.append(drifted(report.dict()["metrics"]))
    return {
        **case,
        "windows": windows,
        "any": sum(bool(columns) for columns, _ in found) / windows,
        "column": sum(looked_at in columns for columns, _ in found) / windows,
        "whole": sum(whole for _, whole in found) / windows,
    }


if __name__ == "__main__":
    results = []
    for one in CASES:
        results.append(measure(one, int(sys.argv[1])))
        print(results[-1], file=sys.stderr, flush=True)
    print(json.dumps(results))
