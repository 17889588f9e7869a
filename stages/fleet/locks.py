"""The part of dvc.lock that belongs to one model.

While a fleet runs, each model has a lock file of its own, so no two machines write the same one. At the end, all of
them are merged into the dvc.lock of the checkout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from onward.registry.errors import UsageError
from onward.registry.files import write_atomically

LOCK = "dvc.lock"
# The entry of each stage, by the stage's name in dvc.lock, such as "train@cnn".
Entries = dict[str, Any]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load(path: Path) -> Entries:
    """Read the entries of a lock file.

    Args:
        path: dvc.lock, or a file like it.

    Returns:
        The entry of each stage; empty if there is no such file.

    Raises:
        UsageError: The file is not a lock file of DVC.
    """
    entries: Entries = _content(path).get("stages", {})
    return entries


def by_model(entries: Mapping[str, Any]) -> dict[str, Entries]:
    """Group the entries of a lock file by the model that they belong to.

    Args:
        entries: The entries.

    Returns:
        The entries of each model, by its name; those of stages that are about no model under "".
    """
    found: dict[str, Entries] = {}
    for name, entry in entries.items():
        found.setdefault(name.partition("@")[2], {})[name] = entry
    return found


def update(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    """Write the entries of models that ran into a lock file. All other entries and their order stay.

    Args:
        path: The file. It is made if it does not exist.
        parts: The entries of each model. Those of two models have different names.

    Raises:
        UsageError: The file is not a lock file of DVC.
    """
    content = _content(path) or {"schema": "2.0"}
    entries = dict(content.get("stages", {}))
    for part in parts:
        entries.update(part)
    text = yaml.dump({**content, "stages": entries}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16)
    write_atomically(path, text.encode())


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_bytes(), Loader=_Loader)
    except FileNotFoundError:
        return {}
    except yaml.YAMLError:
        content = ""
    if content is None:
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("stages", {}), dict):
        raise UsageError(f"{path.name}: is not a lock file of DVC: restore it from git, or delete it")
    return content
