"""Commands for environments with signatures and approvals: keys, approvals, signatures.

registry/cli/main.py adds them to the `onward` command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward.registry.cli.output import Json, Model, Reason, entry_facts, print_json, print_note, say

Environment = Annotated[str, typer.Option("--env", help="The environment, such as production.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", help="The number of the version.")]

keys = typer.Typer(no_args_is_help=True, help="Create keys that sign log entries or the files of versions.")


@keys.command("create")
def create_key(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new file for the private key. Only its owner can read it.")
    ],
    files: Annotated[
        bool,
        typer.Option("--files", help="Create a key that signs files of versions. Its public key goes to FILE.pub."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create a key pair, and print what to add to params.yaml.

    Without --files, the key signs log entries. An entry counts only if params.yaml names the key among the signers of
    the environment.

    Example: onward keys create ann.pem
    """
    from onward.registry.trust import entry_signatures, file_signatures
    from onward.registry.trust.identity import who

    if files:
        public_file = file_signatures.create_key(file)
        if as_json:
            print_json({"public_key": str(public_file), "file": str(file)})
        else:
            say("Add this to each environment in params.yaml that requires files signed by this key:", "")
            say(f"  files_key: {public_file}", "")
            say(f"To sign a version: onward sign-files MODEL VERSION --key {file}")
        return
    public, name = entry_signatures.create_key(file), who()
    if as_json:
        print_json({"name": name, "public_key": public, "file": str(file)})
        return
    say("Add this to each environment in params.yaml that accepts entries signed by this key:", "")
    say(f"  signers: {{{name}: {public}}}", "")
    say(f"To sign with the key on this machine: export {entry_signatures.KEY_FILE}={file.resolve()}")


def approve(
    model: Model,
    version: Version,
    env: Environment,
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Approve that another person promotes a version.

    An environment with `four_eyes` in params.yaml requires such an approval.

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
        list[int] | None,
        typer.Option("--entry", help="The number of an entry to sign. Repeat the option for several entries."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be signed, but sign nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Sign log entries that have no valid signature.

    In an environment with signers, only signed entries count. Without --entry, this signs all entries from before the
    environment had signers. Your signature vouches for the entries, so look at `onward history` first.

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
        say("No entry needs a signature.")


def sign_files(
    model: Model,
    version: Version,
    key: Annotated[Path, typer.Option("--key", help="The private key that `onward keys create --files` created.")],
    as_json: Json = False,
) -> None:
    """Sign all files of a version.

    An environment with a `files_key` in params.yaml accepts only versions signed with that key.

    Example: onward sign-files cnn 3 --key release.pem
    """
    from onward.registry.operations import approval as approvals

    sha256 = approvals.sign_files(model, version, key)
    if as_json:
        print_json({"model": model, "version": version, "sha256": sha256})
    else:
        say(f"signed the files of {model} version {version} (sha256 {sha256[:12]})")
