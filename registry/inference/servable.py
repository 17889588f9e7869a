"""Whether a version can be served: asked of its folder, exactly as it will be uploaded, before it is registered.

    python -m onward.registry.inference.servable FOLDER SHA256 [PROVIDER]

prints what it is about to do, a line each, and last one JSON object, {"fault": ..., "batches": ...}. It is a process of
its own because a model can abort the one that runs it: then nothing is registered, and the last line says when.

The checks are those that an environment and a service make later, by the same functions: the files against their
digests (registry/artifact/manifest.py), the session class (registry/inference/session.py), the recorded inputs
(registry/artifact/replay.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.apart import Died, ask
from onward.registry.artifact.manifest import check_folder, write_manifest
from onward.registry.artifact.replay import BUNDLE, Recorded, departures, judge, replay
from onward.registry.artifact.serving_plan import Serving
from onward.registry.errors import OnwardError
from onward.registry.npz import arrays

if TYPE_CHECKING:
    from onward.registry.evidence.similarity import Arrays
    from onward.registry.inference.session import InferenceSession

# Every provider's session is created twice, and the recorded inputs run four times.
TIMEOUT_S = 600.0
# How far the answers to parts may be from those to the whole, over how far these are from the original's, in lower
# precision: twice, as replay allows another host (registry/artifact/replay.py: 6 dB).
_PARTS = 2.0


@dataclass(frozen=True)
class Servable:
    """What was found: `fault` is why a version cannot be served, `batches` why predict_batches cannot be used with it;
    each is empty where there is nothing to say."""

    fault: str = ""
    batches: str = ""


def examine(folder: Path, sha256: str, provider: str = "", timeout_s: float = TIMEOUT_S) -> Servable:
    """Check the folder of a version, and keep in it whether predict_batches can be used.

    Args:
        folder: what will be uploaded.
        sha256: what the version will carry.
        provider: the execution provider that it was measured on.
        timeout_s: seconds after which it counts as hanging.
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
    """`text` without the path of the folder, which is another one each time."""
    for path in (folder, folder.resolve()):
        text = text.replace(f"{path}/", "").replace(str(path), "the version")
    return text


def examined(folder: Path, sha256: str, provider: str) -> Servable:
    """Check in this process; see examine. Where none of the providers that the version is served on is in this
    environment, the CPU answers, as in a service that lacks them."""
    import onnxruntime

    from onward.registry.inference.session import InferenceSession

    step = _say("the integrity check")
    batches = ""
    try:
        check_folder(folder, sha256)
        recorded, serving = Recorded.load(folder), Serving.load(folder)
        available = onnxruntime.get_available_providers()
        served = serving.root if serving else {}
        here: dict[str, list[str] | None] = {
            name: [entry.provider] for name, entry in served.items() if entry.provider in available
        }
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
        return Servable(fault=f"{step}: {' '.join(str(error).split())[:300] or type(error).__name__}")
    return Servable(batches=batches) if met else Servable(fault=f"{step}: {detail}")


def _without_batches(session: InferenceSession, inputs: Arrays, whole: Arrays, folder: Path, runtime: str) -> str:
    """Why answers to parts of the recorded inputs are not parts of the answers to the whole; empty where they are.

    All samples but the last are fed in two batches, so that the last batch is not full.
    """
    count = min(len(array) if array.ndim else 1 for array in inputs.values())
    fewer = {name: array[: max(count - 1, 1)] if array.ndim else array for name, array in inputs.items()}
    try:
        answers = session.predict_batches(fewer, batch_size=-(-count // 2))
    except OnwardError as error:
        return str(error).removesuffix("; call predict for each batch instead")
    except Exception as error:  # ONNX Runtime's, as above
        return " ".join(str(error).split())[:300]
    parts = _by_name(session, answers)
    expected = {name: array[: max(count - 1, 1)] for name, array in whole.items()}
    apart = list(departures(parts, expected, folder / BUNDLE))
    recorded = Recorded.load(folder)
    if apart and recorded.precision.get(runtime, "float32") != "float32":
        reference = arrays(folder / BUNDLE / "reference.npz")
        apart = [name for name in expected if not _near(parts[name], expected[name], reference[name])]
        apart = [f"output {name} is farther from the whole's than that is from the original's" for name in apart]
    return f"the answers to parts of the inputs are not parts of the answers to the whole: {apart[0]}" if apart else ""


def _near(parts: Any, whole: Any, reference: Any) -> bool:
    """Whether parts differ from the whole by no more than lower precision lets the whole differ from the original."""
    import numpy as np

    apart = np.linalg.norm((parts.astype(np.float64) - whole).ravel())
    noise = np.linalg.norm((whole.astype(np.float64) - reference[: len(whole)]).ravel())
    return bool(apart <= _PARTS * noise)


def _by_name(session: InferenceSession, answers: Any) -> Arrays:
    names = [spec.name for spec in session.metadata.outputs]
    return answers if isinstance(answers, dict) else {names[0]: answers}


def _say(step: str) -> str:
    print(step, flush=True)
    return step


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    found = examined(Path(arguments[0]), arguments[1], arguments[2])
    print(json.dumps({"fault": found.fault, "batches": found.batches}))
