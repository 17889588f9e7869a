"""Records which MLflow store is in use, so that publish fills a new or emptied store from the cached reports.

In a DVC experiment, it also records the experiment's name and whether versions are registered. So `dvc repro` publishes
again, and registers a version, although an experiment has published the same results before.
"""

from __future__ import annotations

import json

from onward.registry import checkout
from onward.registry.files import replacing, write_atomically
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import settings


def main() -> None:
    """Write the identity of the tracking store, without credentials, to build/tracking/store.json.

    In a DVC experiment, also its name, and whether it registers versions.
    """
    from onward.registry.tracking.recorder import store_identity

    wanted = settings("tracking")
    identity: dict[str, str | bool] = {**store_identity(wanted.experiment)}
    if checkout.experiment():
        identity |= {"dvc_experiment": checkout.experiment(), "registers": wanted.register_experiments}
    with replacing(paths.root() / "build" / "tracking") as folder:
        write_atomically(folder / "store.json", (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    command.run_plain(main)
