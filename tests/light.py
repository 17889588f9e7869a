"""An environment with the wheel and exactly the packages that a set of extras needs, linked from that of the tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import ROOT


def _name(text: str) -> str:
    return re.sub("[-_.]+", "-", text).lower()


def closure(*extras: str) -> set[str]:
    """The names of all packages that `pip install onward[EXTRAS]` would install, by pyproject.toml."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        waiting += [Requirement(text) for text in project["optional-dependencies"][extra]]
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            found.add(_name(wanted.name))
            needs = map(Requirement, distribution(wanted.name).requires or ())
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def environment(home: Path, *extras: str) -> Path:
    """Make the environment in `home`, and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    for name in closure(*extras):
        for file in distribution(name).files or ():
            source = here / file
            if ".." in file.parts or file.suffix == ".pyc" or not source.is_file():
                continue
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(source)
    shutil.copytree(ROOT / "onward", packages / "onward", ignore=shutil.ignore_patterns("__pycache__"))
    return home / "bin" / "python"
