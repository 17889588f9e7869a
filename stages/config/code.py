"""Digests of the Onward code that each stage runs.

After an update, only the stages whose code changed run again. A stage's code is its module and, transitively, every
Onward module that it imports, including imports inside functions. Modules are found by parsing import statements;
nothing is imported. Comments, docstrings and blank lines do not count.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from pathlib import Path

from onward.registry.files import sha256_file
from onward.stages.config.source_files import imports, located, parsed, statements

PACKAGE = "onward"

# Modules that do not change what a stage computes: command lines, messages, paths, and the reader of params.yaml.
# The stage's settings file already contains the settings and the schema version of reports.
PLUMBING = frozenset(
    {
        "onward",
        "onward.registry",
        "onward.registry.checkout",
        "onward.registry.errors",
        "onward.registry.evidence",
        "onward.registry.evidence.records",
        "onward.registry.evidence.reports",
        "onward.registry.files",
        "onward.registry.gates.policy",
        "onward.registry.names",
        "onward.registry.text",
        "onward.registry.uri",
        "onward.registry.yaml_text",
        "onward.stages",
        "onward.stages.command",
        "onward.stages.progress",
        "onward.stages.reports",
    }
)
_PLUMBING_FOLDER = "onward.stages.config"

# Modules that another module starts as a process, by file path instead of by import.
STARTED = {
    "onward.stages.transforms.quantizers.nncf": ("onward.stages.transforms.nncf_process",),
    "onward.stages.workers.worker": (
        "onward.stages.workers.evaluator_worker",
        "onward.stages.workers.onnx_worker",
        "onward.stages.workers.openvino_worker",
        "onward.stages.workers.torch_worker",
    ),
    "onward.stages.workers.openvino_worker": ("onward.registry.artifact.openvino_session",),
}


# The standard library's tokenizer finds comments as well, and takes ten times as long. They differ in one case: a
# string inside an f-string with the same quotes, which Python accepts since 3.12, and which contains "#".
_STRING_OR_COMMENT = re.compile(
    r"""(?P<string>'''(?:\\.|[^\\])*?'''|\"{3}(?:\\.|[^\\])*?\"{3}"""
    r"""|'(?:\\.|[^\\'\n])*'|"(?:\\.|[^\\"\n])*")|#[^\n]*""",
    re.DOTALL,
)


@functools.cache
def digests(stage: str, techniques: tuple[str, ...] = ()) -> dict[str, str]:
    """Digest every module that a stage runs.

    Args:
        stage: Name of the stage, such as "export".
        techniques: Modules of the optimisers or quantisers that the stage imports by name.

    Returns:
        The first 16 hexadecimal digits of each module's SHA-256, by module name.
    """
    found: dict[str, str] = {}
    waiting = [f"{PACKAGE}.stages.{stage}", *techniques]
    while waiting:
        name = waiting.pop()
        if name in found or _is_plumbing(name):
            continue
        path = located(name)
        if path is None:  # the name is an attribute, not a module
            continue
        found[name] = _digest(path)
        waiting += [module for module in imports(path, name) if module.split(".")[0] in (PACKAGE, name.split(".")[0])]
        waiting += STARTED.get(name, ())
    return dict(sorted(found.items()))


def installed() -> str:
    """Digest all files of the installed Onward.

    Returns:
        A SHA-256 in hexadecimal digits. Machines with the same one run the same stages.
    """
    top = Path(__file__).parents[2]
    total = hashlib.sha256()
    for path in sorted(path for part in (top, top / "registry", top / "stages") for path in part.rglob("*.py")):
        total.update(f"{path.relative_to(top).as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def _is_plumbing(name: str) -> bool:
    return name in PLUMBING or name == _PLUMBING_FOLDER or name.startswith(f"{_PLUMBING_FOLDER}.")


def _digest(path: Path) -> str:
    status = path.stat()
    return _cached_digest(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _cached_digest(path: Path, _changed: int, _size: int) -> str:
    return hashlib.sha256(stripped(path.read_text()).encode()).hexdigest()[:16]


def stripped(source: str) -> str:
    """Remove comments, docstrings, blank lines and trailing white space from `source`.

    The code is not regenerated with `ast.unparse`, because its output differs between Python versions.
    """
    lines = _STRING_OR_COMMENT.sub(lambda found: found["string"] or "", source).splitlines()
    for node in statements(parsed(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
