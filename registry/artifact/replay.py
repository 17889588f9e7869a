"""Runs a version on its recorded inputs on this host, and judges the answers.

    python -m onward.registry.artifact.replay FOLDER [PROVIDER]

prints one JSON object, {"met": ..., "detail": ...}. It runs in a separate process because a model can abort the process
that runs it. Then the abort is the result, and the calling command continues.

A version's folder contains in `validation/`:

- inputs.npz: the recorded inputs.
- outputs.npz and outputs-NAME.npz: the recorded answers of the winners on the main runtime and on the runtime NAME.
- reference.npz: the original's answers.
- tolerance.json: the tolerances.
- recorded.json: how answers are judged (Recorded).

Every winner whose provider is available in this environment runs with its session options. A float32 graph must
reproduce its recorded answers within the tolerance. A graph of lower precision computes other numbers on another kind
of CPU, so it must stay within the budget's distance from the original instead.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.registry.apart import Died, ask
from onward.registry.artifact.custom_ops import register
from onward.registry.artifact.serving_plan import MODEL, Served, Serving, preload
from onward.registry.evidence.records import OutputKind, Record
from onward.registry.evidence.session_options import CPU, OPENVINO_NATIVE, SessionOptions
from onward.registry.files import write_atomically
from onward.registry.npz import arrays

if TYPE_CHECKING:
    from onward.registry.evidence.similarity import Array, Arrays

TIMEOUT_S = 120.0
BUNDLE = "validation"
RECORDED = "recorded.json"
# The largest acceptable increase of noise since the measurement, in dB (twice the amplitude). It applies if the budget
# has no limit of fidelity and the answers have no top-1.
NOISE_DB = 6.0


class Recorded(Record):
    """The content of recorded.json: how the answers of a version are judged.

    Attributes:
        main: The runtime whose answers are in outputs.npz.
        precision: The precision of each runtime's winner.
        min_snr_db: The budget's lowest signal-to-noise ratio; null if it has none.
        min_cosine: The budget's lowest cosine similarity; null if it has none.
        agreement: By precision, the share of samples on which a graph of lower precision must give the original's
            answer. It applies to outputs whose kind has answers.
        kinds: The kind of each output. Empty in older versions: their first output counts as scores along its last
            axis.
        batches: Why predict_batches cannot be used; empty if it can.
    """

    main: str = ""
    precision: dict[str, str] = {}
    min_snr_db: float | None = None
    min_cosine: float | None = None
    agreement: dict[str, float] = {}
    kinds: list[OutputKind] = []
    batches: str = ""

    @classmethod
    def load(cls, folder: Path) -> Recorded:
        """Read recorded.json of the version in `folder`; return the defaults if the file is missing."""
        try:
            return cls.model_validate_json((folder / BUNDLE / RECORDED).read_bytes())
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        """Write recorded.json of the version in `folder`."""
        write_atomically(folder / BUNDLE / RECORDED, (self.model_dump_json(indent=2) + "\n").encode())


def without_batches(folder: Path) -> str:
    """Tell why predict_batches cannot be used with a version.

    Args:
        folder: The version's files.

    Returns:
        The reason; empty if predict_batches can be used or nothing is recorded.
    """
    try:
        return str(json.loads((folder / BUNDLE / RECORDED).read_bytes()).get("batches", ""))
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return ""  # the file is not valid; `replay` reports why


def measure_again(folder: Path, evidence: Mapping[str, str]) -> tuple[bool, str]:
    """Replay a version on this host, and check whether there is evidence from this kind of host.

    Args:
        folder: The version's files.
        evidence: The version's tags, which include the kinds of host that it was measured on.

    Returns:
        Whether the answers are acceptable here, and a text: what was compared or what went wrong, and a note if there
        is no evidence from this kind of host.
    """
    from onward.registry.host.hardware import unmeasured

    met, detail = replay_in_subprocess(folder, evidence.get("provider", ""))
    return met, "; ".join(filter(None, (detail, unmeasured(evidence.get("instruction_sets")))))


def replay_in_subprocess(
    folder: Path, provider: str = "", timeout_s: float = TIMEOUT_S, allow_custom_ops: bool = False
) -> tuple[bool, str]:
    """Replay a version in another process, so that an abort or a hang becomes a result.

    Args:
        folder: The version's files.
        provider: As in `replay`.
        timeout_s: The longest acceptable duration in seconds.
        allow_custom_ops: As in `replay`.

    Returns:
        Whether the answers are acceptable here, and a text: what was compared or what went wrong.
    """
    try:
        answer = ask("artifact.replay", str(folder), provider, "1" if allow_custom_ops else "", timeout_s=timeout_s)
    except Died as died:
        return False, str(died)
    return bool(answer["met"]), str(answer["detail"])


def replay(folder: Path, provider: str = "", allow_custom_ops: bool = False) -> tuple[bool, str]:
    """Replay a version in this process.

    If this environment has none of the version's providers, the CPU runs model.onnx.

    Args:
        folder: The version's files.
        provider: The provider that a version without serving.json was measured on; the CPU's if empty.
        allow_custom_ops: Whether native libraries of the version may be loaded (custom_ops.py).

    Returns:
        Whether the answers are acceptable here, and a text: what was compared or what went wrong.
    """
    bundle = folder / BUNDLE
    missing = [name for name in ("inputs.npz", "outputs.npz", "tolerance.json") if not (bundle / name).is_file()]
    if missing:
        return False, f"no evidence recorded ({BUNDLE}/{missing[0]} is missing)"
    recorded = Recorded.load(folder)
    from onward.registry.artifact import sessions  # imports onnx, which the other commands do without

    available = sessions.available()
    serving = Serving.load(folder) or Serving({recorded.main: Served(file=MODEL, provider=provider or CPU)})
    serving = serving.here()
    here = {name: served for name, served in serving.root.items() if served.provider in available}
    if not here:
        here = {recorded.main: Served(file=MODEL, provider=CPU, custom_ops=serving.libraries or None)}
    inputs = arrays(bundle / "inputs.npz")
    found, problems = [], []
    for name, served in here.items():
        got, used = _answers(folder, served, inputs, allow_custom_ops)
        faults, summary = judge(got, folder, name)
        problems += [f"{fault} (on {used})" for fault in faults]
        found.append(f"{summary} on {used}")
    return not problems, "; ".join(problems or found)


def judge(got: Arrays, folder: Path, runtime: str) -> tuple[list[str], str]:
    """Compare answers to the recorded inputs with the recorded answers of a runtime's winner.

    Args:
        got: The answers by output name, [samples, ...] each.
        folder: The version's files.
        runtime: The runtime whose winner gave these answers.

    Returns:
        What is wrong with the answers, and a text that says what was compared.
    """
    bundle, recorded = folder / BUNDLE, Recorded.load(folder)
    precision = recorded.precision.get(runtime, "float32")
    own = bundle / ("outputs.npz" if runtime == recorded.main else f"outputs-{runtime}.npz")
    expected = arrays(own if own.is_file() else bundle / "outputs.npz")
    if precision == "float32":
        return list(departures(got, expected, bundle)), _reproduced(expected)
    return _compare_to_original(got, expected, arrays(bundle / "reference.npz"), recorded, precision)


def _answers(folder: Path, served: Served, inputs: Arrays, allow_custom_ops: bool) -> tuple[Arrays, str]:
    """Run what is served; return the answers and the provider that ran. The CPU replaces one that cannot start."""
    from onward.registry.artifact.sessions import NativeSession

    fitting, path, session = served.options.fitting_here(), folder / served.file, None
    if served.provider == OPENVINO_NATIVE and not served.custom_ops:
        with contextlib.suppress(ImportError, RuntimeError):
            session = NativeSession(path, fitting)
    if session is None:
        options = fitting.to_onnxruntime()
        options.log_severity_level = 3
        register(options, folder, served.custom_ops or [], allow_custom_ops)
        session = _onnxruntime_session(path, served.provider, fitting, options)
    names = [output.name for output in session.get_outputs()]
    running = session.get_providers()[0]
    used = running if running == served.provider else f"{running}: {served.provider} fell back to CPU"
    return dict(zip(names, session.run(names, dict(inputs)), strict=True)), used


def _onnxruntime_session(path: Path, provider: str, fitting: SessionOptions, options: Any) -> Any:
    import onnxruntime

    preload([provider])
    wanted = [CPU] if provider == OPENVINO_NATIVE else list(dict.fromkeys((provider, CPU)))
    providers = [fitting.to_provider(name) for name in wanted]
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _reproduced(expected: Arrays) -> str:
    return f"{len(expected)} recorded output{'s' if len(expected) != 1 else ''} reproduced"


def departures(got: Arrays, expected: Arrays, bundle: Path) -> Iterator[str]:
    """Find the outputs that differ from the recorded ones by more than the tolerance.

    Args:
        got: The answers by output name, [samples, ...] each.
        expected: The recorded answers, in the same form.
        bundle: The folder with tolerance.json.

    Yields:
        One sentence per such output.
    """
    tolerance = json.loads((bundle / "tolerance.json").read_text())
    for name, reference in expected.items():
        problem = "is missing" if name not in got else _differs(got[name], reference, *_limits(tolerance, name))
        if problem:
            yield f"output {name} {problem}"


def _compare_to_original(
    got: Arrays, recorded_there: Arrays, reference: Arrays, recorded: Recorded, precision: str
) -> tuple[list[str], str]:
    """Measure how far the answers of a graph of lower precision are from the original's.

    If the budget has limits of fidelity, they decide. Else every output is judged. An output with a class axis or of
    integers must give the original's answer on enough samples: the share in params.yaml, or the share at the
    measurement if that was lower. The noise of any other output may be at most twice the noise at the measurement.

    Returns:
        What is wrong with the answers, and a text with all measures.
    """
    from onward.registry.evidence.similarity import fidelity

    kinds = {kind.output: kind for kind in recorded.kinds}
    got, recorded_there, reference = (
        {name: _as_judged(values, kinds.get(name)) for name, values in answers.items()}
        for answers in (got, recorded_there, reference)
    )
    broken = [name for name in reference if name not in got or got[name].shape != reference[name].shape]
    if broken:
        return [f"output {name} is missing or has another shape" for name in broken], ""
    near, near_there = fidelity(reference, got), fidelity(reference, recorded_there)
    words, faults = [precision], []
    if near.snr_db is not None:
        words.append(f"{near.snr_db:.1f} dB of signal to noise ({near_there.snr_db or 0:.1f} where it was measured)")
    if recorded.min_snr_db is not None or recorded.min_cosine is not None:
        if recorded.min_snr_db is not None and not (near.snr_db or 0) >= recorded.min_snr_db:
            faults.append(f"{near.snr_db or 0:.1f} dB of signal to noise, at least {recorded.min_snr_db:g} required")
        if recorded.min_cosine is not None and not (near.cosine or 0) >= recorded.min_cosine:
            faults.append(f"worst cosine {near.cosine or 0:.5f}, at least {recorded.min_cosine:g} required")
        return faults, ", ".join(words)
    axes = _class_axes(recorded, reference)
    floor = recorded.agreement.get(precision, 1.0)
    for name, wanted in reference.items():
        share, there = (_same(wanted, answers[name], axes.get(name)) for answers in (got, recorded_there))
        if share is not None and there is not None:
            words.append(f"{name} gives the original's answer to {share:.1%} of {len(wanted)} samples")
            if share < min(floor, there):
                required = f"at least {min(floor, there):.1%} required"
                faults.append(f"{name} gives the original's answer to {share:.1%} of the samples, {required}")
            continue
        here, before = (fidelity({name: wanted}, {name: answers[name]}).snr_db for answers in (got, recorded_there))
        if here is not None and before is not None and here < before - NOISE_DB:
            faults.append(f"{name} has {here:.1f} dB of signal to noise, but had {before:.1f} where it was measured")
    if len(words) == 1:
        faults.append("its answers cannot be compared with the original's: no output has a top-1 or a signal")
    return faults, ", ".join(words)


def _as_judged(values: Array, kind: OutputKind | None) -> Array:
    """An output with its samples, and steps if there are any, on the first axes."""
    from onward.registry.evidence.sample_axes import to_front

    if kind is None:
        return values
    values = to_front(values, kind.samples)
    return values[:, None] if kind.steps else values


def _class_axes(recorded: Recorded, reference: Arrays) -> dict[str, int]:
    """The class axis of each output that has one."""
    if recorded.kinds:
        chosen = [kind for kind in recorded.kinds if kind.kind in ("scores", "probabilities")]
        return {kind.output: kind.axis for kind in chosen if kind.axis is not None}
    first = next(iter(reference))
    return {first: reference[first].ndim - 1}


def _same(reference: Array, got: Array, axis: int | None) -> float | None:
    """The share of positions with the original's answer.

    For floats, the answer is the top-1 along `axis`; there is no share (None) without an axis. For other types, the
    whole sample is the answer.
    """
    from onward.registry.evidence.similarity import agreement

    if reference.dtype.kind == "f":
        return None if axis is None else agreement(reference, got, axis)
    return float((reference == got).reshape(len(reference), -1).all(1).mean()) if reference.size else None


def _limits(tolerance: dict[str, Any], output: str) -> tuple[float, float]:
    """(rtol, atol) of an output: its own if it has any, else the model's."""
    own = tolerance.get("outputs", {}).get(output, {})
    return tuple(float(tolerance[key] if own.get(key) is None else own[key]) for key in ("rtol", "atol"))  # type: ignore[return-value]


def _differs(got: Array, expected: Array, rtol: float, atol: float) -> str:
    import numpy as np

    got = np.asarray(got)
    if got.shape != expected.shape:
        return f"has shape {list(got.shape)}, but {list(expected.shape)} was recorded"
    if got.dtype.kind != expected.dtype.kind:
        return f"is {got.dtype}, but {expected.dtype} was recorded"
    if expected.dtype.kind not in "fc":
        return (
            "" if np.array_equal(got, expected) else f"differs at {int(np.sum(got != expected))} of {got.size} elements"
        )
    close = np.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if close.all():
        return ""
    worst = float(np.nanmax(np.abs(got.astype(np.float64) - expected.astype(np.float64))))
    return f"is off by up to {worst:.3g} at {int((~close).sum())} of {got.size} elements (rtol {rtol:g}, atol {atol:g})"


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "", ""]
    met, detail = replay(Path(arguments[0]), arguments[1], allow_custom_ops=bool(arguments[2]))
    print(json.dumps({"met": met, "detail": detail}))
