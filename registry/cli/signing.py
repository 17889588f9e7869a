"""Commands for environments in which it matters who did what: keys, approvals, signatures.

registry/cli/main.py puts them beside the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward.registry.cli.output import Json, Model, Reason, entry_facts, print_json, print_note, say

Environment = Annotated[str, typer.Option("--env", help="The environment, e.g. production.")]

keys = typer.Typer(no_args_is_help=True, help="Keys that sign entries, and files of versions.")


@keys.command("create")
def create_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes, for nobody else to read.")],
    files: Annotated[
        bool, typer.Option("--files", help="A key for files of versions; its public half: FILE.pub.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair, and say what goes into params.yaml for what it signs to count.

    Example: onward keys create ann.pem
    """
    from onward.registry.trust import entry_signatures, file_signatures
    from onward.registry.trust.identity import who

    if files:
        public_file = file_signatures.create_key(file)
        if as_json:
            print_json({"public_key": str(public_file), "file": str(file)})
        else:
            say("In params.yaml, where files have to be signed by this key:", "", f"  files_key: {public_file}", "")
            say(f"To sign a version: onward sign-files MODEL VERSION --key {file}")
        return
    public, name = entry_signatures.create_key(file), who()
    if as_json:
        print_json({"name": name, "public_key": public, "file": str(file)})
        return
    say("In params.yaml, where entries of this key are to count:", "", f"  signers: {{{name}: {public}}}", "")
    say(f"On this machine: export {entry_signatures.KEY_FILE}={file.resolve()}")


def approve(
    model: Model,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The version's number.")],
    env: Environment,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Approve that somebody else promotes a version to an environment with `four_eyes`.

    Example: onward approve cnn 3 --env production --reason "looked at its misses"
    """
    from onward.registry.operations import approval as approvals

    approval, note = approvals.approve(model, version, env, reason=reason)
    print_note(note)
    if as_json:
        print_json({**entry_facts(approval), "note": note})
    else:
        say(f"{env} of {model}, entry {approval.number}: {approval}")


def sign(
    model: Model,
    env: Environment,
    entry: Annotated[
        list[int] | None, typer.Option("--entry", help="Number of an entry to vouch for; may be given again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be signed, and sign nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Sign what counted before an environment had signers, or the entries that are named. Look at its history first.

    Example: onward sign cnn --env production --entry 7
    """
    from onward.registry.operations import approval as approvals

    signed = approvals.sign(model, env, entries=entry or (), dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "signed": [entry_facts(one) for one in signed]})
        return
    for one in signed:
        say(f"{'would sign' if dry_run else 'signed'} entry {one.number}: {one}")
    if not signed:
        say("There is nothing to sign.")


def sign_files(
    model: Model,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The version's number.")],
    key: Annotated[Path, typer.Option("--key", help="The private key, as `onward keys create --files` makes it.")],
    as_json: Json = False,
) -> None:
    """Sign all files of a version, for environments that have a `files_key`.

    Example: onward sign-files cnn 3 --key release.pem
    """
    from onward.registry.operations import approval as approvals

    sha256 = approvals.sign_files(model, version, key)
    if as_json:
        print_json({"model": model, "version": version, "sha256": sha256})
    else:
        say(f"signed the files of {model} version {version} (sha256 {sha256[:12]})")
