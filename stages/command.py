"""The command line of every stage: `python -m onward.stages NAME MODEL`.

Exit codes:
0: the report was written, whatever its verdict.
1: a fault that the operator must fix and that says nothing about the model, such as a full disk.
2: mistakes in params.yaml or the arguments, one line each.

Any other exception becomes a failed report, so that later stages and the table of `verdict` still run.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from onward.registry.errors import OPERATOR_FAULTS, NotReady, OnwardError, UsageError
from onward.registry.evidence.reports import REPORTS, ExportReport, Report, VerifyReport, load, save
from onward.registry.files import replacing
from onward.registry.text import printable
from onward.stages import progress
from onward.stages.config import chain, paths
from onward.stages.workers import circumstances
from onward.stages.workers.worker import WorkerFailure

TRACEBACK = "traceback.txt"


def run(
    stage: str,
    compute: Callable[[str, Path], Report],
    again: Callable[[str, str], bool] | None = None,
    afterwards: Callable[[str, Report], None] | None = None,
) -> None:
    """Run a stage for the model named on the command line, and print its status and reason on one line.

    Args:
        stage: Name of the stage.
        compute: Called with the model's name and a folder; writes its results to the folder and returns the report.
            Its docstring is the text of --help.
        again: Called with the model's name and the case of --case; runs that case alone and returns whether it passed.
        afterwards: Called with the model's name and the report, whatever its status, to write files beside the folder.
    """
    parser = _parser(stage, compute)
    parser.add_argument("model", help="a model of params.yaml")
    if again is not None:
        parser.add_argument("--case", help="run this case alone; the report lists the cases")
    arguments = parser.parse_args()
    model = arguments.model

    def once() -> None:
        if again is not None and arguments.case is not None:
            try:
                _adopt(model, stage)
                sys.exit(0 if again(model, arguments.case) else 1)
            except WorkerFailure as failure:
                sys.exit(printable(failure.reason))
        with progress.started(stage, model):
            report = one(stage, model, compute)
        if afterwards is not None:
            afterwards(model, report)
        print(printable(f"{stage} {model}: {report.status}{': ' if report.reason else ''}{report.reason}"))

    _guarded(once)


def one(stage: str, model: str, compute: Callable[[str, Path], Report]) -> Report:
    """Compute one stage of one model into the stage's folder, and write its report there.

    Args:
        stage: Name of the stage.
        model: Name of the model.
        compute: As for `run`.

    Returns:
        The report. Its status is "failed" if `compute` raised an exception that is the model's fault.

    Raises:
        OnwardError: There is a mistake in params.yaml, or a fault that the operator must fix. The folder is unchanged.
        OSError: There is a fault that the operator must fix, such as a full disk. The folder is unchanged.
    """
    from onward.stages.config.load import section

    section(model, stage)
    _adopt(model, stage)
    with replacing(paths.build(model, stage)) as folder:
        report = _computed(stage, model, compute, folder)
        save(report, folder / "report.json")
        chain.record(model, stage, folder)
    return report


def _adopt(model: str, stage: str) -> None:
    """Set what all sessions of a model need in a stage, as far as earlier stages found it out.

    The export stage copied the libraries of custom operators; the verify stage found the level of graph optimisation.
    """
    later = list(REPORTS)[list(REPORTS).index(stage) :]
    level, libraries = None, []
    with contextlib.suppress(NotReady):  # the stage itself reports what is missing
        if "export" not in later:
            folder = paths.build(model, "export")
            libraries = [folder / library.path for library in load(ExportReport, folder / "report.json").custom_ops]
        if "verify" not in later:
            level = load(VerifyReport, paths.build(model, "verify") / "report.json").graph_level
    circumstances.adopt(level, tuple(libraries))


def _computed(stage: str, model: str, compute: Callable[[str, Path], Report], folder: Path) -> Report:
    """The stage's report; a failed one if the stage raised an exception that the operator cannot fix."""
    try:
        return compute(model, folder)
    except WorkerFailure as failure:
        reason, trace = failure.reason, ""
    except UsageError as error:
        if isinstance(error, NotReady):
            raise
        reason, trace = str(error), ""
    except OnwardError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OPERATOR_FAULTS:
            raise
        reason, trace = _unexpected(stage, model, error), paths.without_paths(traceback.format_exc())
    for path in folder.iterdir():  # partial results must not be used
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if trace:
        (folder / TRACEBACK).write_text(trace)
    return REPORTS[stage](stage=stage, model=model, status="failed", reason=paths.without_paths(reason))


def _unexpected(stage: str, model: str, error: Exception) -> str:
    """The reason for an exception that no stage expects."""
    words = " ".join(str(error).split())[:300]
    return (
        f"internal error: {type(error).__name__}: {words}; please report it with build/{model}/{stage}/{TRACEBACK}; "
        f"to try again: `dvc repro --force --single-item {stage}@{model}`"
    )


def run_plain(main: Callable[..., None], **options: Iterable[str]) -> None:
    """Run a stage that is not about one model.

    Args:
        main: the stage; it gets each option as a keyword argument, None where it is not given.
        options: the values that each option of the command line may have; `as_json`, without values, is --json.
    """
    stage = Path(sys.argv[0]).stem
    parser = _parser(stage, main)
    for name, values in options.items():
        if name == "as_json":
            parser.add_argument("--json", dest=name, action="store_true", help="print JSON")
        else:
            parser.add_argument(f"--{name}", choices=list(values))
    arguments = vars(parser.parse_args())

    def once() -> None:
        with progress.started(stage):
            main(**arguments)

    _guarded(once)


def _parser(stage: str, function: Callable[..., object]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"onward stage {stage}",
        description=inspect.getdoc(function),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _guarded(body: Callable[[], None]) -> None:
    """Run a stage; print errors of users and operators without a traceback and exit with their code."""
    try:
        body()
    except OnwardError as error:
        for line in str(error).split("\n"):  # params.yaml may have several mistakes
            print(printable(line), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in OPERATOR_FAULTS:
            raise
        print(printable(f"{error.filename or paths.root()}: {error.strerror}; nothing was written"), file=sys.stderr)
        sys.exit(1)
