"""An ONNX file as the original: what ONNX Runtime gives with its optimisations off, beside the same in float64.

The float64 evaluation is a second opinion, too. Where the two differ by more than the tolerance and more than rounding
explains, `settle` finds the node at which they part, and which of them is wrong there.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from registry.vocabulary import CaseResult, CaseVerdict
from stages.parity.check import Answers, Expected, compare_outputs
from stages.parity.opinions import Array, Outcome, outside
from stages.runtime import isolate
from stages.runtime.jitter import jittered_file
from stages.runtime.pool import AS_IT_IS, Tensors, Worker, WorkerFailure
from stages.settings import ModelParams, Tolerance

# What rounding explains, in float32 roundings of every operand: as the spread of some draws shows it.
ROUNDINGS, DRAWS = 64.0, 4
# Cases of a quantised graph that are evaluated: a step of a whole number here or there makes each of them differ.
QUANTISED_CASES = 8
# Finding where two implementations part is worth this long.
SETTLE_SECONDS = 300.0
# Progress is told this often, in seconds.
TELL = 10.0
OFF = "verify.evaluator: false in params.yaml switches this check off"


@dataclass(frozen=True)
class Checked:
    """A case that was evaluated: `explained` says that its differences, if any, are rounding."""

    inputs: Tensors
    outputs: Answers
    truth: Answers
    explained: bool


@dataclass(frozen=True)
class Settled:
    """What came of the second opinion: `reason` where the file must not go on; `findings` where the evaluation was
    wrong; `expected` without the float64 answers that are not to be trusted."""

    evaluator: str
    evaluated: list[CaseResult]
    expected: list[Expected]
    findings: list[str] = field(default_factory=list)
    reason: str = ""


class OnnxReference:
    """Answers as the file does: a worker's `start`, `run`, `answer`, `close` and `label`."""

    def __init__(self, file: Path, model: str, settings: ModelParams) -> None:
        self.file, self.model, self.tolerance = file, model, settings.tolerance
        self.timeout, self.seconds = settings.verify.timeout, settings.verify.evaluator_seconds
        self.runtime = Worker.onnx(file, f"{model} as it came", options=AS_IT_IS, timeout=self.timeout)
        self.evaluator = Worker.evaluator(file, model, self.timeout)
        self.label = self.runtime.label
        self.checked: list[Checked] = []
        # Why no further case is evaluated, and why float64 answers are no measure though cases are evaluated.
        self.stopped = "" if settings.verify.evaluator else "verify.evaluator is false"
        self.untrue = ""
        self.skipped = ""
        self._began = self._used = self._told = 0.0
        self._shaken: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> OnnxReference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> dict[str, object]:
        """Load the file in ONNX Runtime.

        Raises:
            WorkerFailure: it refuses the file.
        """
        return self.runtime.start()

    def run(self, inputs: Tensors) -> Answers:
        """What ONNX Runtime gives.

        Raises:
            WorkerFailure: it refuses the input, died of it, or did not answer in time.
        """
        return self.runtime.run(inputs)

    def answer(self, inputs: Tensors) -> tuple[Answers, Answers]:
        """What ONNX Runtime gives, and the same in float64 as far as that can be had.

        Raises:
            WorkerFailure: as `run`.
        """
        outputs = self.run(inputs)
        # Probes: that NaN, infinity or nothing at all can be fed is not promised.
        odd = any(v.size == 0 or (v.dtype.kind == "f" and not np.isfinite(v).all()) for v in inputs.values())
        if odd or self.stopped:
            return outputs, {}
        self._began = time.monotonic()
        truth = self._evaluate(inputs, outputs)
        self._used += time.monotonic() - self._began
        if self._used - self._told > TELL:
            self._told = self._used
            limit = f"{self._used:.0f} of {self.seconds:g} s"
            self._say(f"{len(self.checked)} cases evaluated in float64, {limit}")
        return outputs, truth

    def shake(self, seed: int | None) -> bool:
        """From now on, `run` a copy of the file with every float weight moved by one unit in the last place, up or down
        at random; with None, the file itself.

        Returns:
            whether that can be done: not of a file over 2 GB.

        Raises:
            WorkerFailure: ONNX Runtime refuses the copy.
        """
        if seed is None:
            if self._shaken is not None:
                self.runtime.switch(self.file, self.label)
            return True
        if self._shaken is None:
            self._shaken = tempfile.TemporaryDirectory(prefix="onward-")
        target = Path(self._shaken.name) / "shaken.onnx"
        if not jittered_file(self.file, target, seed):
            return False
        self.runtime.switch(target, self.label)
        return True

    def close(self) -> None:
        if self._shaken is not None:
            self._shaken.cleanup()
        self.runtime.close()
        self.evaluator.close()

    def settle(self, expected: list[Expected]) -> Settled:
        """Rule on the cases in which ONNX Runtime and the evaluation differ.

        Args:
            expected: what `answer` gave, case by case.
        """
        self.evaluator.close()
        # A probe informs only, and so does a case in which the original itself wavers.
        found = [(item, c) for item in expected if not item.probe for c in self.checked if c.inputs is item.case.inputs]
        evaluated = [self._result(item, checked) for item, checked in found]
        settled = Settled(self._about(len(found)), evaluated, expected)
        differing = [pair for pair in found if not pair[1].explained]
        differing.sort(key=lambda pair: sum(value.size for value in pair[1].inputs.values()))
        end = time.monotonic() + SETTLE_SECONDS
        wrong: dict[str, None] = {}
        walked = 0
        for item, checked in differing:
            left = end - time.monotonic()
            if walked and left < 1:
                break
            self._say(f"ONNX Runtime and the float64 evaluation differ in case {item.case.name}: looking for the node")
            try:
                outcome = isolate.call(max(left, 1.0) + 5, _walk, self.file, checked.inputs, checked.outputs, left)
            except WorkerFailure as failure:
                if walked:
                    break
                reason = f"; where they part could not be found ({failure.reason[:200]})"
                return replace(settled, reason=_disagree(item.case.name) + reason + f"; {OFF}")
            walked += 1
            wrong.update(dict.fromkeys(difference.sentence() for difference in outcome.differences))
            reason = _against(outcome, item.case.name)
            if reason:
                return replace(settled, reason=reason, findings=list(wrong))
        if wrong:
            return replace(settled, findings=list(wrong), expected=[replace(item, truth={}) for item in expected])
        if not differing:
            return settled
        about = (
            f"{settled.evaluator}; {len(differing)} of them differ by more than the tolerance: in {walked} of these, "
            "every node is right for the values before it, so that the difference is rounding"
        )
        return replace(settled, evaluator=about)

    def _evaluate(self, inputs: Tensors, outputs: Answers) -> Answers:
        """The outputs in float64, as far as they are to be trusted; remembers the case."""
        try:
            against = str(self._ready().start().get("against", ""))
            if "draws at random" in against:
                self.stopped = against
                return {}
            self.untrue = self.untrue or against
            truth = self._ask(inputs)
            explained = not _apart(outputs, truth, self.tolerance)
            if not explained and not against:
                explained = self._is_rounding(inputs, outputs, truth)
        except WorkerFailure as failure:
            self._refused(failure)
            return {}
        self.checked.append(Checked(inputs, outputs, truth, explained))
        if against and len(self.checked) >= QUANTISED_CASES:
            self.stopped = f"{QUANTISED_CASES} cases are enough of a quantised graph"
        return _usable(outputs, truth) if explained and not self.untrue else {}

    def _ask(self, inputs: Tensors, seed: int | None = None) -> Answers:
        answers, narrow = self._ready().evaluate(inputs, seed)
        if narrow:
            self.untrue = f"onnx's evaluator computes {', '.join(narrow)} in float32"
        return answers

    def _ready(self) -> Worker:
        """The evaluator, which is given the time that is left."""
        left = self.seconds - self._used - (time.monotonic() - self._began)
        self.evaluator.timeout = max(0.01, min(left, self.timeout))
        return self.evaluator

    def _refused(self, failure: WorkerFailure) -> None:
        if failure.kind == "timed out":
            spent = self._used + (time.monotonic() - self._began)
            limit = f"{self.seconds:g} s (verify.evaluator_seconds)" if spent >= self.seconds else f"{self.timeout:g} s"
            self.stopped = f"the time limit of {limit} was reached"
        elif self.checked and failure.kind == "error":
            self.skipped = failure.reason[:300]
        else:
            self.stopped = f"the evaluator cannot run this model: {failure.reason[:300]}"

    def _is_rounding(self, inputs: Tensors, outputs: Answers, truth: Answers) -> bool:
        """Whether the outputs move so far as well when every operand of every node moves by an ulp at random."""
        squares = {name: np.zeros(value.shape) for name, value in truth.items()}
        for draw in range(1, DRAWS + 1):
            moved = self._ask(inputs, draw)
            for name, value in truth.items():
                if moved[name].shape != value.shape:
                    squares[name][...] = np.inf
                elif value.dtype.kind != "f":
                    squares[name][moved[name] != value] = np.inf
                else:
                    with np.errstate(invalid="ignore", over="ignore"):
                        squares[name] += np.nan_to_num(np.square(moved[name] - value), posinf=np.inf)
            spread = {name: ROUNDINGS * np.sqrt(square / draw) for name, square in squares.items()}
            if not _apart(outputs, truth, self.tolerance, spread):
                return True
        return False

    def _about(self, count: int) -> str:
        """What was evaluated, and what was not."""
        if not count:
            return f"not checked: {self.stopped or self.skipped or 'there is no case to evaluate'}"
        parts = [f"{count} cases evaluated in float64, node by node"]
        if self.untrue:
            parts.append(f"no float64 reference: {self.untrue}")
        if self.skipped:
            parts.append(f"cases that the evaluator refused: {self.skipped}")
        if self.stopped:
            parts.append(f"the others not checked: {self.stopped}")
        return "; ".join(parts)

    def _result(self, item: Expected, checked: Checked) -> CaseResult:
        """The evaluation beside what ONNX Runtime gave."""
        narrowed = {
            name: value.astype(checked.outputs[name].dtype) if name in checked.outputs else value
            for name, value in checked.truth.items()
        }
        outputs = compare_outputs(checked.outputs, narrowed, self.tolerance)
        reason = ""
        if checked.explained:
            reason = "rounding explains the difference" if any(o.verdict != "ok" for o in outputs) else ""
        verdict: CaseVerdict = next((o.verdict for o in outputs if o.verdict != "ok"), "ok")
        case = item.case
        return CaseResult(
            case=case.name,
            seed=case.seed,
            sizes=case.sizes,
            verdict="ok" if checked.explained else verdict,
            reason=reason,
            outputs=outputs,
        )

    def _say(self, words: str) -> None:
        print(f"verify {self.model}: {words}", file=sys.stderr, flush=True)


def _usable(outputs: Answers, truth: Answers) -> Answers:
    """What of the float64 answers can be a measure: the same shape, the same kind, finite where float32 is."""
    return {
        name: value
        for name, value in truth.items()
        if name in outputs
        and value.shape == outputs[name].shape
        and value.dtype.kind == outputs[name].dtype.kind
        and (value.dtype.kind != "f" or not (np.isfinite(outputs[name]) & ~np.isfinite(value)).any())
    }


def _apart(outputs: Answers, truth: Answers, tolerance: Tolerance, spread: Answers | None = None) -> bool:
    """Whether an output differs by more than its tolerance and what rounding moves it."""
    for name, value in outputs.items():
        if name not in truth or value.dtype.kind not in "fiub":
            continue  # sequences and maps
        wide = truth[name]
        if wide.shape != value.shape:
            return spread is None or not np.isinf(spread[name]).all()
        rtol, atol = tolerance.of(name)
        allowed: Array = np.zeros(wide.shape)
        if wide.dtype.kind == "f":
            with np.errstate(invalid="ignore", over="ignore"):
                allowed = np.nan_to_num(atol + rtol * np.abs(wide), posinf=0.0)
                # What overflows in float32 alone is nobody's mistake.
                allowed = np.where(np.isfinite(wide) & ~np.isfinite(value), np.inf, allowed)
        if outside(value, wide, allowed + (0.0 if spread is None else spread[name])).any():
            return True
    return False


def _against(outcome: Outcome, case: str) -> str:
    """Why the file must not go on; empty where it may."""
    last = outcome.differences[-1] if outcome.differences else None
    if last is not None and last.runtime_is_wrong:
        return f"ONNX Runtime does not compute this file as ONNX defines it: {last.sentence()}, case {case}; {OFF}"
    if last is not None and not last.ruling.decided:
        return f"{_disagree(case)}: {last.sentence()}; {OFF}"
    if not outcome.adds_up:
        return (
            f"{_disagree(case)}, and though ONNX Runtime computes each node right by itself, the whole graph gives "
            f"another answer; {OFF}"
        )
    return ""


def _disagree(case: str) -> str:
    return f"ONNX Runtime and the float64 evaluation of the file disagree in case {case}"


def _walk(file: Path, inputs: Tensors, outputs: Answers, seconds: float) -> Outcome:
    from stages.parity.walk import walk  # torch and onnxruntime belong in the process that this is called in

    return walk(file, dict(inputs), outputs, seconds)
