"""The `onward` command: what the registry and the pipeline each contribute to it."""

from __future__ import annotations

from onward.registry.cli.main import app
from onward.registry.cli.main import main as run
from onward.stages import cli as pipeline

pipeline.mount(app)


def main() -> None:
    """The console entry point."""
    run()


if __name__ == "__main__":
    main()
