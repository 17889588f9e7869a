"""Check that a version can be served. The check uses the folder as it will be uploaded, before it is registered.

    python -m onward.registry.inference.servable FOLDER SHA256 [PROVIDER]

This command prints a line before each step, and then one JSON object, {"fault": ..., "batches": ...}. It runs in its
own process, because a model can abort the process that runs it. In that case nothing is registered, and the last line
says which step failed.

Environments and services later make the same checks, with the same functions: the files against their digests
(registry/artifact/manifest.py), the session class (registry/inference/session.py), and the recorded inputs
(registry/artifact/replay.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.apart import Died, ask
from onward.registry.artifact import sessions
from onward.registry.artifact.manifest import check_folder, write_manifest
from onward.registry.artifact.replay import BUNDLE, Recorded, departures, judge, replay
from onward.registry.artifact.serving_plan import Serving
from onward.registry.errors import OnwardError
from onward.registry.evidence.sample_axes import part
from onward.registry.inference.model import error_text
from onward.registry.npz import arrays

if TYPE_CHECKING:
    from onward.registry.evidence.similarity import Array, Arrays
    from onward.registry.inference.session import InferenceSession

# Each provider's session is created twice, and the recorded inputs are run four times.
TIMEOUT_S = 600.0
# In lower precision, the answers to parts of the inputs may differ from the answers to all of them by this factor times
# the difference from the original. Replay allows another host the same factor (registry/artifact/replay.py: 6 dB).
_PARTS = 2.0


@dataclass(frozen=True)
class Servable:
    """The result of the check.

    Attributes:
        fault: why the version cannot be served; "" if it can.
        batches: why predict_batches cannot be used with it; "" if it can.
    """

    fault: str = ""
    batches: str = ""


def examine(folder: Path, sha256: str, provider: str = "", timeout_s: float = TIMEOUT_S) -> Servable:
    """Check the folder of a version in another process, and record in it whether predict_batches can be used.

    Args:
        folder: the folder that will be uploaded.
        sha256: the digest of the version's model.
        provider: the execution provider that the version was measured on.
        timeout_s: the time limit of the check, in s.
    """
    try:
        found = Servable(**ask("inference.servable", str(folder), sha256, provider, timeout_s=timeout_s))
    except Died as died:
        found = Servable(fault=f"{died.last}: {died}" if died.last else str(died))
    found = Servable(_without_path(found.fault, folder), _without_path(found.batches, folder))
    if found.batches and not found.fault:
        Recorded.load(folder).model_copy(update={"batches": found.batches}).save(folder)
        write_manifest(folder)
    return found


def _without_path(text: str, folder: Path) -> str:
    """`text` without the path of the temporary folder, which differs in each run."""
    for path in (folder, folder.resolve()):
        text = text.replace(f"{path}/", "").replace(str(path), "the version")
    return text


def examined(folder: Path, sha256: str, provider: str) -> Servable:
    """Check the folder of a version in this process; see `examine`.

    If this environment has none of the version's providers, the check uses the CPU, as a service without them would.

    Args:
        folder: the folder that will be uploaded.
        sha256: the digest of the version's model.
        provider: the execution provider that the version was measured on.
    """
    from onward.registry.inference.session import InferenceSession

    step = _say("the integrity check")
    batches = ""
    try:
        check_folder(folder, sha256)
        recorded, serving = Recorded.load(folder), Serving.load(folder)
        available = sessions.available()
        served = serving.here().root if serving else {}
        here: dict[str, list[str] | None] = {}
        for name, entry in served.items():  # a session takes the first entry of a provider
            if entry.provider in available and [entry.provider] not in here.values():
                here[name] = [entry.provider]
        inputs = arrays(folder / BUNDLE / "inputs.npz")
        if not here:
            here[recorded.main] = None
        for name, providers in here.items():
            step = _say("loading it")
            session = InferenceSession(folder, providers)
            step = _say("predict with the recorded inputs")
            whole = _by_name(session, session.predict(inputs))
            faults, _ = judge(whole, folder, name)
            if faults:
                return Servable(fault=f"{step}: {'; '.join(faults)}")
            step = _say("predict_batches with the recorded inputs")
            batches = batches or _without_batches(session, inputs, whole, folder, name)
        step = _say("the replay")
        met, detail = replay(folder, provider)
    except OnwardError as error:
        return Servable(fault=f"{step}: {error}")
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        return Servable(fault=f"{step}: {error_text(error) or type(error).__name__}")
    return Servable(batches=batches) if met else Servable(fault=f"{step}: {detail}")


def _without_batches(session: InferenceSession, inputs: Arrays, whole: Arrays, folder: Path, runtime: str) -> str:
    """Why predict_batches gives other answers than predict on the recorded inputs; "" if it gives the same.

    All samples but the last are run in two batches, so that the last batch is not full.
    """
    axes = session.sample_axes
    counted = [(array, axis) for name, array in inputs.items() if (axis := axes[name]) is not None]
    count = min((array.shape[axis] for array, axis in counted if array.ndim > axis), default=1)
    kept = max(count - 1, 1)
    fewer = {name: _first(array, axes[name], kept) for name, array in inputs.items()}
    try:
        answers = session.predict_batches(fewer, batch_size=-(-count // 2))
    except OnwardError as error:
        return str(error).removesuffix("; call predict for each batch instead")
    except Exception as error:  # ONNX Runtime's, as above
        return error_text(error)
    parts = _by_name(session, answers)
    expected = {name: _first(array, axes[name], kept) for name, array in whole.items()}
    differences = list(departures(parts, expected, folder / BUNDLE))
    recorded = Recorded.load(folder)
    if differences and recorded.precision.get(runtime, "float32") != "float32":
        reference = arrays(folder / BUNDLE / "reference.npz")
        differences = [
            f"output {name} differs by more than {_PARTS:g} times its difference from the original"
            for name in expected
            if not _near(parts[name], expected[name], _first(reference[name], axes[name], kept))
        ]
    if not differences:
        return ""
    return f"the answers in batches differ from the answers to all inputs at once: {differences[0]}"


def _first(array: Array, axis: int | None, count: int) -> Array:
    """The first samples of an array; all of an array without samples."""
    return part(array, axis if axis is not None and array.ndim > axis else None, 0, count)


def _near(parts: Any, whole: Any, reference: Any) -> bool:
    """Whether the answers in batches differ from the whole by at most _PARTS times its difference from the original."""
    import numpy as np

    difference = np.linalg.norm((parts.astype(np.float64) - whole).ravel())
    noise = np.linalg.norm((whole.astype(np.float64) - reference).ravel())
    return bool(difference <= _PARTS * noise)


def _by_name(session: InferenceSession, answers: Any) -> Arrays:
    names = [spec.name for spec in session.metadata.outputs]
    return answers if isinstance(answers, dict) else {names[0]: answers}


def _say(step: str) -> str:
    """Print a step, and return it for the error message."""
    print(step, flush=True)
    return step


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    found = examined(Path(arguments[0]), arguments[1], arguments[2])
    print(json.dumps({"fault": found.fault, "batches": found.batches}))
