"""The Python environments of runtimes and tools, because ONNX Runtime's builds cannot share one.

`cpu` is the environment that Onward itself runs in. The others are made from pins: those of the project in
`runtimes/NAME.txt` if it has them, else Onward's own in `pins/NAME.txt`. They are kept in `.runtimes/NAME` below the
project.

    python("openvino", root)    # the interpreter
    install("openvino", root)   # make its environment, unless it exists
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onward.registry.checkout import original
from onward.registry.errors import OnwardError, UsageError
from onward.registry.files import replacing, sha256_file, write_atomically

# Tools with an environment of their own that runs no models; each is a package of that name.
TOOLS = ("nncf",)
# TensorRT is a provider of the same ONNX Runtime build as CUDA.
SHARED = {"tensorrt": "cuda"}
# The folder of all environments, below the project.
FOLDER = ".runtimes"
_BUILDS = ("onnxruntime", "onnxruntime-openvino", "onnxruntime-gpu")
_PINS = Path(__file__).resolve().parent / "pins"
_MARKER = "onward.json"


def python(name: str, root: Path) -> Path:
    """Locate the interpreter of a runtime's environment.

    Args:
        name: The runtime's name.
        root: The project's folder.

    Returns:
        This interpreter for cpu, the one in `.runtimes/NAME` below `root` for the others.
    """
    return Path(sys.executable) if name == "cpu" else environment(name, root) / "bin" / "python"


def install(name: str, root: Path) -> bool:
    """Make the environment of a runtime from its pins, unless it exists.

    A new environment replaces the old one only when it is complete. A killed or failed installation changes nothing.

    Args:
        name: The runtime's name.
        root: The project's folder.

    Returns:
        Whether anything was installed.

    Raises:
        UsageError: The runtime is unknown or has no environment of its own.
        OnwardError: pip could not install it.
    """
    installable = sorted({path.stem for folder in (root / "runtimes", _PINS) for path in folder.glob("*.txt")})
    if name in SHARED:
        raise UsageError(
            f"{name} has no environment of its own: it runs in that of {SHARED[name]} and needs NVIDIA's "
            f"TensorRT 10 libraries on LD_LIBRARY_PATH; run onward runtimes install {SHARED[name]}"
        )
    if name not in installable:
        raise UsageError(f"unknown runtime {name!r}; there are {', '.join(installable)}")
    if name == "cpu" or made_of(name, root) == wanted(name, root):
        return False
    with replacing(root / FOLDER / name) as fresh:
        _call([sys.executable, "-m", "venv", "--without-pip", str(fresh)], name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(fresh / "bin" / "python")]
        _call([*pip, "install", "--quiet", "-r", str(_pins(name, root))], name)
        write_atomically(fresh / _MARKER, (json.dumps(wanted(name, root), indent=2) + "\n").encode())
    return True


def environment(name: str, root: Path) -> Path:
    """The folder of a runtime's environment; that of the user's checkout, if `root` is an experiment's copy of it."""
    return original(root) / FOLDER / SHARED.get(name, name)


def wanted(name: str, root: Path) -> dict[str, str]:
    """The marker that an environment made from the current pins has."""
    pins = _pins(name, root)
    return {"pins": sha256_file(pins) if pins.is_file() else "", "python": platform.python_version()}


def _pins(name: str, root: Path) -> Path:
    """The requirements file of a runtime: the project's own, else Onward's."""
    file = f"{SHARED.get(name, name)}.txt"
    own = root / "runtimes" / file
    return own if own.is_file() else _PINS / file


def made_of(name: str, root: Path) -> dict[str, str] | None:
    """The marker of an environment; None if there is no complete environment."""
    if name == "cpu":
        return {"python": platform.python_version(), **{build: _version(build) for build in (*_BUILDS, "numpy")}}
    try:
        found: dict[str, str] = json.loads((environment(name, root) / _MARKER).read_text())
        return found
    except (FileNotFoundError, ValueError):
        return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _call(command: list[str], name: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")] or done.stdout.splitlines()
        raise OnwardError(f"runtimes/{name}.txt cannot be installed: {lines[0] if lines else 'pip gave no output'}")
