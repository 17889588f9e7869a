"""Finds the source files that a callable named in params.yaml depends on, without importing them.

Files are found where Python would import them from: the project, the repository (with or without `src/`), or an
editable installation. Packages in site-packages are not followed; their version represents them.
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_INSTALLED = ("site-packages", "dist-packages")


def local_sources(module: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Find the files of `module`, of its parent packages and, transitively, of everything that they import.

    Args:
        module: Dotted name.
        folders: Folders to search before `sys.path`.

    Returns:
        Files by module name. Files of Onward, the standard library and installed packages are left out.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    seen = set()
    while waiting:
        name = waiting.pop()
        top = name.split(".")[0]
        if name in seen or top == "onward" or top in sys.stdlib_module_names:
            continue
        seen.add(name)
        path = locate(name, folders)
        if path is None or is_installed(path):
            continue
        found[name] = path
        waiting += imports(path, name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return dict(sorted(found.items()))


def locate(module: str, folders: Sequence[Path] = ()) -> Path | None:
    """Find the source file of a module without importing the module.

    Args:
        module: Dotted name.
        folders: Folders to search before `sys.path`.

    Returns:
        The file, or None if the module has no source file.
    """
    top, *rest = module.split(".")
    for folder in folders:
        if _below([folder], [top]):  # Python uses the first regular module or package and searches no further
            return _below([folder], [top, *rest])
    if found := _below(folders, [top, *rest]):
        return found
    spec = _top_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is not None:
        return _below([Path(place) for place in spec.submodule_search_locations], rest) if rest else _source(spec)
    return None if rest else _source(spec)


# `locate` for modules of installed packages, whose place does not change while a process runs.
located = functools.cache(locate)


def is_installed(path: Path) -> bool:
    """Whether a file belongs to an installed package or to Python itself."""
    return any(part in _INSTALLED for part in path.parts) or path.is_relative_to(Path(sys.base_prefix) / "lib")


def installed_version(module: str) -> str:
    """Name and version of the installed distribution that provides a module, or "" if there is none."""
    names = importlib.metadata.packages_distributions().get(module.split(".")[0], [])
    return "; ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def defines(path: Path, attribute: str) -> bool:
    """Whether a file defines, assigns or imports `attribute`, without importing the file.

    Definitions inside functions and classes count, too.

    Raises:
        SyntaxError: The file does not parse.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == attribute:
            return True
        if isinstance(node, (ast.Import, ast.ImportFrom)) and any(
            (alias.asname or alias.name) in (attribute, "*") for alias in node.names
        ):
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == attribute:
            return True
    return False


def imports(path: Path, module: str) -> list[str]:
    """List the dotted names that a file imports.

    Imports inside functions count; imports under `if TYPE_CHECKING:` do not.

    Args:
        path: The source file.
        module: Its dotted name, for resolving relative imports.

    Returns:
        Imported modules, and for `from m import a` also `m.a`, which may be a module or an attribute.
    """
    status = path.stat()
    return _cached_imports(path, module, status.st_mtime_ns, status.st_size)


@functools.cache
def _cached_imports(path: Path, module: str, _changed: int, _size: int) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in statements(parsed(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


@functools.lru_cache(maxsize=1)
def parsed(source: str) -> ast.Module:
    """Parse the source of a file; once, if its digest and its imports are computed one after the other."""
    return ast.parse(source)


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Walk a module and all its statements, without their expressions and without blocks of `if TYPE_CHECKING:`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += node.orelse
            continue
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, block, ())
            waiting += inner if isinstance(inner, list) else ()


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


@functools.cache
def _top_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: the module is loaded but has no spec
        return None


def _source(spec: importlib.machinery.ModuleSpec) -> Path | None:
    path = Path(spec.origin) if spec.origin and spec.has_location else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _below(folders: Sequence[Path], parts: Sequence[str]) -> Path | None:
    for folder in folders:
        base = folder.joinpath(*parts)
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None
