"""What every stage's command line has in common: `python -m stages.NAME MODEL`, --help, and sane exit codes.

0: the report is written, whatever its verdict. 2: a mistake in params.yaml or an argument, one line each.
1: an operator's fault that is no verdict on the model, such as a full disk.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from registry.disk import replacing
from registry.errors import OnwardError
from registry.evidence import Report, save
from stages import paths
from stages.runtime.pool import DISK_FULL


def run(stage: str, compute: Callable[[str, Path], Report], again: Callable[[str, str], bool] | None = None) -> None:
    """Run a stage for the model named on the command line and say in a line what came of it.

    `compute(model, folder)` writes what it makes to `folder` and returns the report. `again(model, case)`, where a
    stage has it, feeds one case alone for --case and says whether it passed.
    """
    parser = _parser(stage, compute)
    parser.add_argument("model", help="a model of params.yaml")
    if again is not None:
        parser.add_argument("--case", help="feed this case alone; the report names them")
    arguments = parser.parse_args()
    model = arguments.model

    def once() -> None:
        if again is not None and arguments.case is not None:
            sys.exit(0 if again(model, arguments.case) else 1)
        report = one(stage, model, compute)
        print(f"{stage} {model}: {report.status}{': ' if report.reason else ''}{report.reason}")

    _guarded(once)


def one(stage: str, model: str, compute: Callable[[str, Path], Report]) -> Report:
    """Compute one stage of one model into its own folder, which changes only when all went well."""
    with replacing(paths.build(model, stage)) as folder:
        report = compute(model, folder)
        save(report, folder / "report.json")
    return report


def run_plain(main: Callable[[], None]) -> None:
    """Run a stage that is not about one model."""
    stage = Path(sys.argv[0]).stem
    _parser(stage, main).parse_args()
    _guarded(main)


def _parser(stage: str, function: Callable[..., object]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m stages.{stage}",
        description=inspect.getdoc(function),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guarded(body: Callable[[], None]) -> None:
    try:
        body()
    except OnwardError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (*DISK_FULL, errno.EACCES, errno.EROFS):
            raise
        print(f"{error.filename or paths.root()}: {error.strerror}; nothing was written", file=sys.stderr)
        sys.exit(1)
