"""Runs the recorded inputs of a version on this host and judges the answers here, whatever they were elsewhere.

    python -m onward.registry.artifact.replay FOLDER [PROVIDER]

prints one JSON object, {"met": ..., "detail": ...}. It is a process of its own because a model can abort the one that
runs it: then that is the finding, and not the end of the command that asked.

A version's folder holds in `validation/`: inputs.npz; outputs.npz and outputs-NAME.npz, what the winners of the main
runtime and of the runtime NAME answered where they were measured; reference.npz, what the original answers;
tolerance.json; and recorded.json, which says what is held to what (Recorded). Every winner whose provider is in this
environment is run, with its session options. A float32 graph has to repeat its recorded answers within the tolerance.
A graph of lower precision computes other numbers on a CPU of another kind: it has to stay as near to the original as
the budget says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.apart import Died, ask
from onward.registry.artifact.serving_plan import MODEL, Served, Serving, preload
from onward.registry.evidence.records import OutputKind, Record
from onward.registry.evidence.session_options import CPU
from onward.registry.files import write_atomically
from onward.registry.npz import arrays

if TYPE_CHECKING:
    from onward.registry.evidence.similarity import Array, Arrays

TIMEOUT_S = 120.0
BUNDLE = "validation"
RECORDED = "recorded.json"
# Where the budget names no fidelity and answers have no top-1: twice the noise, in amplitude, of where it was measured.
NOISE_DB = 6.0


class Recorded(Record):
    """recorded.json: the precision of each runtime's winner, the runtime whose answers outputs.npz holds, and the
    budget's floors of fidelity, where it has any. `agreement` is the share of samples on which a graph of lower
    precision has to give the original's answer, by precision, for outputs whose kind has answers. `kinds` say what each
    output is; versions of before have none, and their first output counts as scores along its last axis. `batches` says
    why predict_batches cannot be used; it is empty where it can."""

    main: str = ""
    precision: dict[str, str] = {}
    min_snr_db: float | None = None
    min_cosine: float | None = None
    agreement: dict[str, float] = {}
    kinds: list[OutputKind] = []
    batches: str = ""

    @classmethod
    def load(cls, folder: Path) -> Recorded:
        """What the version in `folder` says, the defaults where it says nothing."""
        try:
            return cls.model_validate_json((folder / BUNDLE / RECORDED).read_bytes())
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Write recorded.json of the version in `folder`."""
        write_atomically(folder / BUNDLE / RECORDED, (self.model_dump_json(indent=2) + "\n").encode())


def without_batches(folder: Path) -> str:
    """Why predict_batches cannot be used with the version in `folder`; empty where it can, or nothing is recorded."""
    try:
        return str(json.loads((folder / BUNDLE / RECORDED).read_bytes()).get("batches", ""))
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return ""  # no file of ours: `replay` says what is wrong with it


def measure_again(folder: Path, evidence: Mapping[str, str]) -> tuple[bool, str]:
    """Replay the version in `folder` on this host; `evidence` are the version's tags, which say what kinds of host it
    was measured on.

    Returns:
        whether the answers hold here, and in words what was compared or what went wrong; and whether there is no
        evidence from this kind of host.
    """
    from onward.registry.host.hardware import unmeasured

    met, detail = replay_in_subprocess(folder, evidence.get("provider", ""))
    return met, "; ".join(filter(None, (detail, unmeasured(evidence.get("instruction_sets")))))


def replay_in_subprocess(folder: Path, provider: str = "", timeout_s: float = TIMEOUT_S) -> tuple[bool, str]:
    """Replay the version in `folder`; an abort or a hang is an answer too.

    Returns:
        whether the answers hold here, and in words what was compared or what went wrong.
    """
    try:
        answer = ask("artifact.replay", str(folder), provider, timeout_s=timeout_s)
    except Died as died:
        return False, str(died)
    return bool(answer["met"]), str(answer["detail"])


def replay(folder: Path, provider: str = "") -> tuple[bool, str]:
    """Replay in this process; see replay_in_subprocess.

    `provider` is the one that a version without serving.json was measured on; where this environment lacks it, or all
    of those that the version is served on, the CPU answers.
    """
    import onnxruntime

    bundle = folder / BUNDLE
    missing = [name for name in ("inputs.npz", "outputs.npz", "tolerance.json") if not (bundle / name).is_file()]
    if missing:
        return False, f"no evidence recorded ({BUNDLE}/{missing[0]} is missing)"
    recorded = Recorded.load(folder)
    available = onnxruntime.get_available_providers()
    serving = Serving.load(folder) or Serving({recorded.main: Served(file=MODEL, provider=provider or CPU)})
    here = {name: served for name, served in serving.root.items() if served.provider in available}
    if not here:
        here = {recorded.main: Served(file=MODEL, provider=CPU)}
    inputs = arrays(bundle / "inputs.npz")
    found, problems = [], []
    for name, served in here.items():
        got, used = _answers(folder, served, inputs)
        faults, words = judge(got, folder, name)
        problems += [f"{fault} (on {used})" for fault in faults]
        found.append(f"{words} on {used}")
    return not problems, "; ".join(problems or found)


def judge(got: Arrays, folder: Path, runtime: str) -> tuple[list[str], str]:
    """Hold answers to the recorded inputs to what the winner of `runtime` answered where it was measured.

    Returns:
        what of them is wrong, and in words what was compared.
    """
    bundle, recorded = folder / BUNDLE, Recorded.load(folder)
    precision = recorded.precision.get(runtime, "float32")
    own = bundle / ("outputs.npz" if runtime == recorded.main else f"outputs-{runtime}.npz")
    expected = arrays(own if own.is_file() else bundle / "outputs.npz")
    if precision == "float32":
        return list(departures(got, expected, bundle)), _repeated(expected)
    return _strays(got, expected, arrays(bundle / "reference.npz"), recorded, precision)


def _answers(folder: Path, served: Served, inputs: Arrays) -> tuple[Arrays, str]:
    """What is served answers, and the provider that it runs on: one that cannot start leaves its place to the CPU."""
    import onnxruntime

    fitting = served.options.fitting_here()
    options = fitting.to_onnxruntime()
    options.log_severity_level = 3
    preload([served.provider])
    providers = [fitting.to_provider(name) for name in dict.fromkeys((served.provider, CPU))]
    session = onnxruntime.InferenceSession(str(folder / served.file), options, providers=providers)
    names = [output.name for output in session.get_outputs()]
    running = session.get_providers()[0]
    used = running if running == served.provider else f"{running}: {served.provider} fell back to CPU"
    return dict(zip(names, session.run(names, dict(inputs)), strict=True)), used


def _repeated(expected: Arrays) -> str:
    return f"{len(expected)} recorded output{'s' if len(expected) != 1 else ''} repeated"


def departures(got: Arrays, expected: Arrays, bundle: Path) -> Iterator[str]:
    """Where answers leave the recorded ones by more than the tolerance."""
    tolerance = json.loads((bundle / "tolerance.json").read_text())
    for name, reference in expected.items():
        problem = "is missing" if name not in got else _differs(got[name], reference, *_limits(tolerance, name))
        if problem:
            yield f"output {name} {problem}"


def _strays(
    got: Arrays, recorded_there: Arrays, reference: Arrays, recorded: Recorded, precision: str
) -> tuple[list[str], str]:
    """How far a graph of lower precision strays from the original here: what of it is too far, and all of it in words.

    The budget's floors of fidelity bind where it has any. Else every output is judged: one with a class axis, or of
    integers, by the share of samples with the original's answer (that of the params, or what it was where it was
    measured if that was less); any other by its noise, which may be twice what it was there.
    """
    from onward.registry.evidence.similarity import fidelity

    absent = [name for name in reference if name not in got or got[name].shape != reference[name].shape]
    if absent:
        return [f"output {name} is missing, or of another shape" for name in absent], ""
    near, near_there = fidelity(reference, got), fidelity(reference, recorded_there)
    words, faults = [precision], []
    if near.snr_db is not None:
        words.append(f"{near.snr_db:.1f} dB of signal to noise ({near_there.snr_db or 0:.1f} where it was measured)")
    if recorded.min_snr_db is not None or recorded.min_cosine is not None:
        if recorded.min_snr_db is not None and not (near.snr_db or 0) >= recorded.min_snr_db:
            faults.append(f"{near.snr_db or 0:.1f} dB of signal to noise, {recorded.min_snr_db:g} wanted")
        if recorded.min_cosine is not None and not (near.cosine or 0) >= recorded.min_cosine:
            faults.append(f"worst cosine {near.cosine or 0:.5f}, {recorded.min_cosine:g} wanted")
        return faults, ", ".join(words)
    axes = _class_axes(recorded, reference)
    floor = recorded.agreement.get(precision, 1.0)
    for name, wanted in reference.items():
        share, there = (_same(wanted, answers[name], axes.get(name)) for answers in (got, recorded_there))
        if share is not None and there is not None:
            words.append(f"{name} with the original's answer to {share:.1%} of {len(wanted)} samples")
            if share < min(floor, there):
                faults.append(f"{name} gives the original's answer to {share:.1%}, {min(floor, there):.1%} wanted")
            continue
        here, before = (fidelity({name: wanted}, {name: answers[name]}).snr_db for answers in (got, recorded_there))
        if here is not None and before is not None and here < before - NOISE_DB:
            faults.append(f"{name} has {here:.1f} dB of signal to noise, {before:.1f} where it was measured")
    if len(words) == 1:
        faults.append("nothing says how near its answers are to the original's: there is no top-1, and no signal")
    return faults, ", ".join(words)


def _class_axes(recorded: Recorded, reference: Arrays) -> dict[str, int]:
    """The axis of classes of each output that has one."""
    if recorded.kinds:
        chosen = [kind for kind in recorded.kinds if kind.kind in ("scores", "probabilities")]
        return {kind.output: kind.axis for kind in chosen if kind.axis is not None}
    first = next(iter(reference))
    return {first: reference[first].ndim - 1}


def _same(reference: Array, got: Array, axis: int | None) -> float | None:
    """The share of positions with the original's answer: its top-1 along `axis`, or the whole sample where it is no
    float; null where it has neither."""
    from onward.registry.evidence.similarity import agreement

    if reference.dtype.kind == "f":
        return None if axis is None else agreement(reference, got, axis)
    return float((reference == got).reshape(len(reference), -1).all(1).mean()) if reference.size else None


def _limits(tolerance: dict[str, Any], output: str) -> tuple[float, float]:
    """(rtol, atol) of an output: its own, where it has any, else the model's."""
    own = tolerance.get("outputs", {}).get(output, {})
    return tuple(float(tolerance[key] if own.get(key) is None else own[key]) for key in ("rtol", "atol"))  # type: ignore[return-value]


def _differs(got: Array, expected: Array, rtol: float, atol: float) -> str:
    import numpy as np

    got = np.asarray(got)
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)}, {list(expected.shape)} was recorded"
    if got.dtype.kind != expected.dtype.kind:
        return f"is {got.dtype}, {expected.dtype} was recorded"
    if expected.dtype.kind not in "fc":
        return (
            "" if np.array_equal(got, expected) else f"differs at {int(np.sum(got != expected))} of {got.size} places"
        )
    close = np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    worst = float(np.nanmax(np.abs(got.astype(np.float64) - expected.astype(np.float64))))
    return f"is off by up to {worst:.3g} at {int((~close).sum())} of {got.size} places (rtol {rtol:g}, atol {atol:g})"


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    met, detail = replay(Path(arguments[0]), arguments[1])
    print(json.dumps({"met": met, "detail": detail}))
