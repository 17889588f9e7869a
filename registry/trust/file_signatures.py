"""Signs all files of a version in sigstore's format for models, with a private key, and checks such signatures.

    create_key(Path("release.pem"))                       # the private half; release.pem.pub goes into the repository
    signature = sign(folder, Path("release.pem"))
    verify(folder, signature, Path("release.pem.pub"))

A digest proves that the files are the published ones. A signature proves that the owner of the key had these files.
The optional package model-signing does the work (`pip install 'onward[signing]'`); its own command can verify the
signatures as well.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from types import ModuleType

from onward.registry.artifact.manifest import NOT_OURS
from onward.registry.errors import Refused, UsageError
from onward.registry.trust.entry_signatures import write_private

# The tag with the signature, of a version and of the evidence in an entry.
TAG = "files_signature"


def create_key(path: Path) -> Path:
    """Make a key pair (NIST P-256) and write it to two files in PEM format.

    Args:
        path: The file for the private half; the public half goes to `path`.pub.

    Returns:
        The file with the public half.

    Raises:
        UsageError: `path` exists or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = ec.generate_private_key(ec.SECP256R1())
    write_private(path, private)
    public = path.with_name(f"{path.name}.pub")
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def sign(folder: Path, key: Path) -> str:
    """Sign all files below a folder.

    Args:
        folder: A version's files.
        key: The file with the private key.

    Returns:
        The signature as JSON: a sigstore bundle.

    Raises:
        UsageError: model-signing is not installed, or `key` contains no private key that it supports.
    """
    model_signing = _package()
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=[folder / NOT_OURS], ignore_git_paths=False)
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        file = Path(temporary) / "signature"
        try:
            signing = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"--key {key}: not a private key on a NIST curve in PEM format: {error}") from None
        signing.set_hashing_config(hashing).sign(folder, file)
        return file.read_text()


def verify(folder: Path, signature: str, key: Path) -> None:
    """Check a signature of all files below a folder.

    Args:
        folder: A version's files.
        signature: The sigstore bundle.
        key: The file with the public key.

    Raises:
        Refused: A file was changed, added or removed, or the signature was not made with this key.
        UsageError: model-signing is not installed, or `key` contains no public key.
    """
    model_signing = _package()
    try:
        verifying = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{key}: not a public key on a NIST curve in PEM format: {error}") from None
    with tempfile.TemporaryDirectory(prefix="onward-") as temporary:
        file = Path(temporary) / "signature"
        file.write_text(signature)
        try:
            verifying.verify(folder, file)
        except Exception as error:  # a forged bundle can cause any error, and each means: not proven
            raise Refused(_reason(error, key)) from error


def _package() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise UsageError(f"signatures of files need model-signing: pip install 'onward[signing]' ({error})") from None
    return model_signing


def _reason(error: Exception, key: Path) -> str:
    text = str(error)
    # A message is the repr of a list: if a digest happens to contain a quote, all quotes around it are escaped.
    problems = [f"{name} has changed" for name in re.findall(r"Hash mismatch for \\*'([^'\\]+)\\*'", text)]
    for what, found in (("is not signed", r"Extra files"), ("is missing", r"Missing files")):
        for names in re.findall(rf"{found} [^:]*: ([^\"]+)[\"']", text):
            problems += [f"{name} {what}" for name in names.split(", ")]
    if problems:
        return f"the files are not those that were signed: {'; '.join(problems)}"
    return f"the signature of the files was not made with {key.name}: {type(error).__name__}: {text[:200]}"
