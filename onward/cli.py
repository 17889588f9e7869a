"""The `onward` command, which combines the commands of the registry and the pipeline."""

from __future__ import annotations

from onward.registry.cli.main import app
from onward.registry.cli.main import main as run
from onward.stages import cli as pipeline

__all__ = ["app", "main"]

pipeline.mount(app)


def main() -> None:
    """Run the `onward` command; the console entry point."""
    run()


if __name__ == "__main__":
    main()
