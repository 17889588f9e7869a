"""Which of the repository's own source files a callable depends on, read from the text without importing it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path


def local_sources(module: str, root: Path) -> list[Path]:
    """Files below `root` that `module` is made of: its own, its packages' and, transitively, those it imports.

    `stages` and `registry` are left out: each stage lists its own code in dvc.yaml.
    """
    found: dict[Path, None] = {}
    waiting = [module]
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.split(".")[0] in ("stages", "registry"):
            continue
        seen.add(name)
        path = _file(name, root)
        if path is None:
            continue
        found[path] = None
        waiting += _imports(path, name)
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return sorted(found)


def defines(module: str, attribute: str, root: Path) -> bool | None:
    """Whether the module's text defines or imports `attribute` at top level; None where `module` is not ours."""
    path = _file(module, root)
    if path is None:
        return None
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


def _file(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(path: Path, module: str) -> list[str]:
    """Names that the file imports: many callables lie in one file, which is parsed once as long as it is the same."""
    status = path.stat()
    return _parsed_imports(path, module, status.st_mtime_ns, status.st_size)


@functools.cache
def _parsed_imports(path: Path, module: str, _changed: int, _size: int) -> list[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
