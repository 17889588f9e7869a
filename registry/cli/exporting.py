"""Commands that export versions to other servers. registry/cli/main.py adds them to the `onward` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from onward.registry.cli.output import Json, print_json, print_note, say
from onward.registry.errors import UsageError

Name = Annotated[str, typer.Option("--name", help="The model's name on the server. Default: its own.")]
Runtime = Annotated[
    str,
    typer.Option("--runtime", help="Export the winner on this runtime. Default: the fastest one on ONNX Runtime."),
]
Targets = Annotated[
    list[str], typer.Argument(metavar="TARGET...", help="MODEL@ENVIRONMENT, MODEL/VERSION, or .onnx files.")
]


def export_triton(
    targets: Targets,
    out: Annotated[Path, typer.Option("--out", help="The folder of the model repository.")],
    name: Name = "",
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="The version's number there. Default: its own; 1 for a file.")
    ] = None,
    runtime: Runtime = "",
    as_json: Json = False,
) -> None:
    """Write versions to a model repository of the Triton Inference Server.

    Each model gets its files, a config.pbtxt with its documented inputs and outputs, session options and provider, and
    dynamic batching as the benchmark's batch sweep suggests, and warm-up requests from its recorded inputs. Digests and
    signatures are checked before anything is written. Other versions in the repository stay.

    Example: onward export-triton cnn@production transformer@production --out models
    """
    from onward.registry.other_servers import exported, triton

    if len(targets) > 1 and (name or version):
        raise UsageError("--name and --version need exactly one TARGET")
    found = [exported.read(target, name, version, runtime) for target in targets]
    twice = sorted({one.name for one in found if [other.name for other in found].count(one.name) > 1})
    if twice:
        raise UsageError(f"two targets have the name {twice[0]}: export them one by one, with --name")
    results = []
    for one in found:
        written = triton.write(one, out)
        results.append(
            {
                "target": one.target,
                "model": one.name,
                "version": one.version,
                "sha256": one.sha256 or None,
                "folder": str(written.folder.resolve()),
                "changed": written.changed,
                "max_batch_size": written.batching.most,
                "preferred_batch_size": list(written.batching.preferred),
                "max_queue_delay_microseconds": written.batching.delay_us,
                "notes": list(written.notes),
            }
        )
        if not as_json:
            state = "written" if written.changed else "already there"
            say(f"{one.target}: {written.folder / str(one.version)}: {state}")
        for note in written.notes:
            print_note(f"{one.target}: {note}")
    if as_json:
        print_json(results)


def export_kserve(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="MODEL@ENVIRONMENT or MODEL/VERSION.")],
    out: Annotated[Path, typer.Option("--out", help="The YAML file to write.")],
    image: Annotated[str, typer.Option("--image", help="Run `onward serve` in this image (deploy/Dockerfile).")] = "",
    storage_uri: Annotated[
        str, typer.Option("--storage-uri", help="Run Triton on the model repository at this address.")
    ] = "",
    tracking_uri: Annotated[
        str, typer.Option("--tracking-uri", help="The MLflow server that the pod uses. Default: MLFLOW_TRACKING_URI.")
    ] = "",
    secret: Annotated[str, typer.Option("--secret", help="Secret with MLFLOW_TRACKING_USERNAME and _PASSWORD.")] = "",
    params: Annotated[
        str, typer.Option("--params", help="ConfigMap with params.yaml, which names environments and signers.")
    ] = "",
    name: Name = "",
    namespace: Annotated[str, typer.Option("--namespace", help="Its namespace. Default: that of kubectl.")] = "",
    runtime: Runtime = "",
    as_json: Json = False,
) -> None:
    """Write an InferenceService for KServe, with the protocol v2.

    With --image, the pod runs `onward serve`, which follows the environment. With --storage-uri, KServe's runtime for
    Triton serves the model repository that `onward export-triton` wrote, after you have uploaded it. Digests and
    signatures are checked before anything is written.

    Example: onward export-kserve cnn@production --image registry.example/onward:0.1.0 --out cnn.yaml
    """
    import yaml

    from onward.registry.files import write_atomically
    from onward.registry.other_servers import exported, kserve

    if bool(image) == bool(storage_uri):
        raise UsageError("give one of --image and --storage-uri: what should serve the model?")
    if storage_uri and (tracking_uri or secret or params):
        raise UsageError("--tracking-uri, --secret and --params belong to --image: Triton needs no MLflow")
    version = exported.read(target, runtime=runtime)
    if image:
        store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        service = kserve.with_onward(version, kserve.Pod(image, store, secret, params), name, namespace)
    else:
        service = kserve.with_triton(version, storage_uri, name, namespace)
    try:
        write_atomically(out, yaml.safe_dump(service, sort_keys=False, allow_unicode=True).encode())
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None
    if as_json:
        print_json({"file": str(out.resolve()), "service": service})
    else:
        say(out)
