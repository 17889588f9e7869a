"""The `onward` command: parse arguments, call an operation of registry/operations/, and print the result.

Slow packages are imported only by the commands that need them, so that `onward --help` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

import typer

from onward.registry.cli import evidence, exporting, maintenance, runtimes, serving, signing, watching
from onward.registry.cli.batch import batch
from onward.registry.cli.faults import explained
from onward.registry.cli.output import (
    Json,
    Model,
    Reason,
    entry_facts,
    entry_state,
    environment_cell,
    newest_cell,
    prepare_output,
    print_comparison,
    print_error,
    print_gates,
    print_json,
    print_note,
    print_outcome,
    print_table,
    run_cell,
    say,
    short_time,
    trouble_lines,
)
from onward.registry.errors import INTERRUPTED, READER_GONE, Refused, UsageError
from onward.registry.store import connection
from onward.registry.uri import hidden

DEBUG = "ONWARD_DEBUG"
# Set by the shell's completion function.
COMPLETING = "_ONWARD_COMPLETE"

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Deploy versions of ONNX models to environments, see which version is live where, and roll back.\n\n"
    "`dvc repro` builds and registers versions. `onward promote` makes a version live in an environment, such as "
    "staging or production, if it meets the requirements in params.yaml. Each deployment is an entry in a log. `onward "
    "status` shows the current state, and `onward history` shows the log.\n\n"
    "All commands use the MLflow store that MLFLOW_TRACKING_URI names, or else mlflow.db beside dvc.yaml.\n\n"
    "Exit codes: 0 success; 1 a gate or a check failed; 2 wrong usage or configuration; 3 another command changed the "
    "log first; 4 the store cannot be reached or gives invalid answers; 5 a fault of this machine (disk, permissions, "
    "memory, ONNX Runtime); 130 interrupted with Ctrl-C.",
)

_debug: ContextVar[bool] = ContextVar("debug", default=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes a tenth of a second with what it imports

        say(f"onward {version('onward')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Also print the traceback of an error. ONWARD_DEBUG=1 does the same.")
    ] = False,
) -> None:
    """Handle the options that precede the command."""
    if debug:
        _debug.set(True)


Target = Annotated[str, typer.Argument(metavar="TARGET", help="MODEL@ENVIRONMENT, MODEL/VERSION, or an .onnx file.")]


@app.command()
def status(as_json: Json = False) -> None:
    """Show which version is live in each environment.

    The table also shows the newest version of each model, and the models whose newest pipeline run failed. Lines that
    begin with `!` name problems, and say what to do about them. Nothing is changed.

    Example: onward status
    """
    from onward.registry.operations import overview
    from onward.registry.store import relocate

    found = overview.status()
    elsewhere = relocate.find()
    if as_json:
        print_note(str(elsewhere or ""))
        print_json(
            [
                {
                    "model": model.model,
                    "newest": model.newest.version if model.newest else None,
                    "failed": model.failed or None,
                    "foreign": model.foreign,
                    "environments": {
                        state.environment: {
                            "live": entry_facts(state.live) if state.live else None,
                            "drift": [str(drift) for drift in state.drift],
                            "not_entries": state.foreign,
                            "not_signed": [entry.number for entry in state.unproven],
                            "of_a_newer_onward": state.newer,
                            "alarm": state.alarm,
                            "decay": list(state.decay.alarms) if state.decay else [],
                            "refused": [refusal.model_dump() for refusal in state.refused],
                        }
                        for state in model.environments
                    },
                }
                for model in found
            ]
        )
        return
    moved = f"! {elsewhere}" if elsewhere else ""
    if not found:
        say("No model is registered yet: `dvc repro` registers every model that passes.", *filter(None, [moved]))
        return
    ours = [model for model in found if not model.foreign]
    if ours:
        environments = [state.environment for state in ours[0].environments]
        rows = [
            (model.model, newest_cell(model), *map(environment_cell, model.environments), run_cell(model))
            for model in ours
        ]
        # The last column is shown only if a run failed.
        runs = ["newest run"] if any(model.failed for model in ours) else []
        columns = ["model", "newest version", *environments, *runs]
        print_table(columns, (row[: len(columns)] for row in rows))
    for model in found:
        if model.foreign:
            say(f"! the registered model {model.model!r} is not Onward's, and is ignored")
        for state in model.environments:
            for line in trouble_lines(model.model, state):
                say(f"! {line}")
    if moved:
        say(moved)


@app.command()
def history(
    model: Model,
    env: Annotated[str | None, typer.Option("--env", help="Show one environment only. Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Show the deployment log of a model.

    Each entry has a number, and says when, who, what and why, and the result of each gate. `live` marks the current
    deployment, and `lost` an entry that had no effect because another command was faster.

    Example: onward history cnn --env production
    """
    from onward.registry.operations import overview

    logs = overview.history(model, env)
    if as_json:
        print_json(
            {
                name: [{**entry_facts(entry), "state": entry_state(log, entry)} for entry in log.entries()]
                for name, log in logs.items()
            }
        )
        return
    for name, log in logs.items():
        say(f"{name} of {model}" + (":" if log.entries() else ": nothing yet"))
        for entry in log.entries():
            say(f"{entry.number:>5}  {short_time(entry.at)}  {entry_state(log, entry):<8}  {entry}")
            if gates := ", ".join(f"{gate.requirement} {'met' if gate.met else 'NOT MET'}" for gate in entry.gates):
                say(f"{'':>35}{gates}")
        for sentence in log.damage:
            say(f"! {sentence}")


@app.command()
def promote(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="The environment to deploy to, such as staging.")],
    reason: Reason,
    version: Annotated[
        int | None,
        typer.Argument(
            metavar="VERSION",
            help="The number of the version. Default: the version that is live in the environment before this one, or "
            "the newest version that meets the requirements.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Deploy although requirements are not met. The history shows this permanently."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all requirements, but change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Deploy a version to an environment.

    The version must meet the requirements that params.yaml has for the environment. Its files are copied to the
    environment, and a new entry in the log makes it live. If it is live already, no entry is added.

    Example: onward promote cnn 3 --to staging --reason "better on sevens"
    """
    from onward.registry.operations import promotion

    print_outcome(promotion.promote(model, to, version, reason=reason, force=force, dry_run=dry_run), as_json)


@app.command()
def rollback(
    model: Model,
    env: Annotated[str, typer.Option("--env", help="The environment, such as production.")],
    reason: Reason,
    to: Annotated[
        int | None,
        typer.Option("--to", help="The number of the log entry to return to. Default: the deployment before this one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the previous version live again.

    A second rollback goes one version further back. This works even if the version and its pipeline run were deleted,
    because each environment keeps its own copy of deployed files.

    Example: onward rollback cnn --env production --reason "wrong on sevens"
    """
    from onward.registry.operations import promotion

    print_outcome(promotion.rollback(model, env, reason=reason, to=to), as_json)


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="MODEL@ENV", help="A model and an environment: cnn@production.")],
    as_json: Json = False,
) -> None:
    """Check the files and the answers of the live version.

    Every file is compared with its digest. Then the recorded inputs are run on this machine, and the answers are
    compared with the recorded ones.

    Example: onward check cnn@production
    """
    from onward.registry.operations import overview

    model, at, environment = target.partition("@")
    if not at:
        raise UsageError(f"{target!r}: give MODEL@ENVIRONMENT, such as cnn@production")
    found = overview.check(model, environment)
    if as_json:
        print_json(
            {
                "target": target,
                "met": found.met,
                "entry": entry_facts(found.entry),
                "results": [result.model_dump() for result in found.results],
            }
        )
    else:
        say(f"{target}: version {found.entry.candidate_version}, entry {found.entry.number}")
        print_gates(found.results)
    if not found.met:
        failed = "; ".join(str(result) for result in found.results if not result.met)
        raise Refused(f"{target} differs from the published version, or does not work on this machine: {failed}")


@app.command()
def diff(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="MODEL@ENVIRONMENT or MODEL/VERSION.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="The version to compare it with, in the same form.")],
    as_json: Json = False,
) -> None:
    """Show the differences between two versions.

    The comparison covers the graph, its operators, the evidence, the params, the metrics and the latencies.

    Example: onward diff cnn@staging cnn@production
    """
    from onward.registry.operations.comparison import compare

    print_comparison(compare(left, right), as_json)


@app.command()
def compare(
    model: Model,
    left: Annotated[int, typer.Argument(metavar="V1", help="The number of a version.")],
    right: Annotated[int, typer.Argument(metavar="V2", help="The number of the version to compare it with.")],
    as_json: Json = False,
) -> None:
    """Show the differences between two versions of a model.

    This is the same as `onward diff MODEL/V1 MODEL/V2`.

    Example: onward compare cnn 3 4
    """
    from onward.registry.operations.comparison import compare

    print_comparison(compare(f"{model}/{left}", f"{model}/{right}"), as_json)


@app.command()
def predict(
    target: Target,
    input_: Annotated[
        Path, typer.Option("--input", help="An .npz file with one array per input. The first axis counts samples.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="An .npz file for the outputs. Default: print them.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="The number of samples in a batch.")] = 32,
    as_json: Json = False,
) -> None:
    """Run a model on the samples in an .npz file.

    Example: onward predict cnn@production --input digits.npz --output answers.npz
    """
    import numpy as np

    from onward.registry import npz
    from onward.registry.files import write_atomically
    from onward.registry.inference.session import InferenceSession

    arrays = npz.read(input_)
    _silence_onnxruntime()
    session = InferenceSession(target)
    answers = session.predict_batches(arrays, batch_size)
    if not isinstance(answers, dict):
        answers = {session.metadata.outputs[0].name: answers}
    if output is not None:
        import io

        buffer = io.BytesIO()
        np.savez(buffer, **answers)
        try:
            write_atomically(output, buffer.getvalue())
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise UsageError(f"--output {output}: {error.strerror}") from None
    if as_json:
        print_json(
            {
                name: {"shape": array.shape, "dtype": str(array.dtype), "values": array.tolist()}
                for name, array in answers.items()
            }
        )
        return
    for name, array in answers.items():
        shape = ", ".join(str(size) for size in array.shape)
        say(f"{name} {array.dtype}[{shape}]{f' -> {output}' if output else ''}")
        if output is None:
            say(*np.array2string(array, threshold=64, precision=6).split("\n"))


@app.command()
def inspect(target: Target, as_json: Json = False) -> None:
    """Describe an ONNX model, or a stage's report.

    For a model, the command shows its opsets, inputs, outputs, parameters, operators, size and metadata.

    TARGET may also be a stage's report, such as build/MODEL/verify/report.json. Then the command shows what failed. If
    the export differs from PyTorch, it also names the first node that differs, with its module and source line. For
    the reports of `benchmark` and `select`, it also shows all variants, like `onward variants`.

    Example: onward inspect model.onnx
    """
    from onward.registry.artifact import onnx_file
    from onward.registry.artifact.manifest import content_digest
    from onward.registry.cli import report_text
    from onward.registry.inference.session import locate

    if target.endswith(".json"):
        report = report_text.read(Path(target))
        if as_json:
            print_json(report.model_dump(mode="json"))
        else:
            say(*report_text.lines(report))
            evidence.print_variants_of(report, Path(target))
        return
    path, origin, _ = locate(target)
    origin.pop("evidence", None)
    onnx_file.check(path, target)
    graph = onnx_file.describe(path)
    digests = onnx_file.digests(path)
    if as_json:
        files = [file.model_dump() for file in digests]
        print_json({**origin, "sha256": content_digest(digests), **graph.model_dump(), "files": files})
        return
    facts = {
        "sha256": content_digest(digests),
        "producer": graph.producer or "unknown",
        "IR version": graph.ir_version,
        "opsets": ", ".join(f"{domain} {number}" for domain, number in graph.opsets.items()),
        "parameters": f"{graph.parameters:,}",
        "size": f"{graph.size_bytes:,} bytes in {len(digests)} file{'s' if len(digests) > 1 else ''}",
    }
    say(target)
    for name, value in facts.items():
        say(f"  {name:<11} {value}")
    for kind, specs in (("input", graph.inputs), ("output", graph.outputs)):
        for spec in specs:
            say(f"  {kind:<11} {spec.name} {spec.dtype}[{', '.join(str(dim) for dim in spec.shape)}]")
    say(f"  {'nodes':<11} {graph.nodes}")
    width = max((len(name) for name in graph.operators), default=0)
    for name, count in sorted(graph.operators.items(), key=lambda item: (-item[1], item[0])):
        say(f"  {'':<11} {name:<{width}} {count:>5}")
    for name, value in graph.metadata.items():
        say(f"  {'metadata':<11} {name}: {value}")


def _silence_onnxruntime() -> None:
    """Turn off ONNX Runtime's log: errors repeat it, and it prints names from the model without escaping them."""
    try:
        import onnxruntime
    except ImportError:
        return  # the session reports this
    onnxruntime.set_default_logger_severity(4)


app.command("report")(evidence.report)
app.command("variants")(evidence.variants)
app.command("reconcile")(maintenance.reconcile)
app.command("serve")(serving.serve)
app.command("batch")(batch)
app.command("export-triton")(exporting.export_triton)
app.command("export-kserve")(exporting.export_kserve)
app.command("monitor")(watching.monitor)
app.command("ui")(maintenance.ui)
app.command("export-log")(maintenance.export_log)
app.command("import-log")(maintenance.import_log)
app.command("prune")(maintenance.prune)
app.add_typer(maintenance.environments, name="environments")
app.add_typer(maintenance.stores, name="store")
app.add_typer(runtimes.runtimes, name="runtimes")
app.command("approve")(signing.approve)
app.command("sign")(signing.sign)
app.command("sign-files")(signing.sign_files)
app.add_typer(signing.keys, name="keys")


def main() -> None:
    """Run the command. If it fails, print one line on stderr, and exit with the error's exit code."""
    connection.settle_process()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (`>&-`)
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    gc.set_threshold(50_000, 20, 20)  # imports create many lasting objects, which frequent collections scan in vain
    prepare_output()
    if COMPLETING in os.environ:
        app(prog_name="onward")  # typer's own entry answers the shell, and exits
    _debug.set(os.environ.get(DEBUG, "0") not in ("", "0"))
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_error("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # prevent another error when Python flushes stdout at exit
        code = READER_GONE
    except Exception as error:
        code = _failed(error)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Run a command. Typer's own entry point is not used, because it prints errors and chooses exit codes itself."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("onward", arguments) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def _failed(error: Exception) -> int:
    """Print an error, and return its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        say(*str(error).split("\n"), stream=sys.stderr)
        return UsageError.exit_code
    if hasattr(error, "format_message"):  # typer's error about an argument
        error = UsageError(
            f"{error.format_message().rstrip('.')}: see `onward --help`, or add --help after the command"
        )
    if _debug.get():
        say(*hidden("".join(traceback.format_exception(error))).rstrip().split("\n"), stream=sys.stderr)
    fault = explained(error)
    print_error(fault)
    return fault.exit_code
