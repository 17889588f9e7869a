"""Records which MLflow store is in use, so that publish fills a new or emptied store from the cached reports."""

from __future__ import annotations

import json

from onward.registry.files import replacing, write_atomically
from onward.stages import command
from onward.stages.config import paths
from onward.stages.config.load import settings


def main() -> None:
    """Write the identity of the tracking store, without credentials, to build/tracking/store.json."""
    from onward.registry.tracking.recorder import store_identity

    identity = store_identity(settings("tracking").experiment)
    with replacing(paths.root() / "build" / "tracking") as folder:
        write_atomically(folder / "store.json", (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    command.run_plain(main)
