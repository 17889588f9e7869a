"""Which of several implementations of one operator is wrong, where they differ: the majority is right.

No single one is an oracle. ONNX's reference evaluator computes BatchNormalization of opset 9 to 13 with statistics of
the batch; ONNX Runtime picks another pixel than the specification does where 26 are resized to 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
By = Literal["ONNX Runtime", "ONNX's reference evaluator", "PyTorch"]
RUNTIME: By = "ONNX Runtime"
EVALUATOR: By = "ONNX's reference evaluator"
TORCH: By = "PyTorch"


@dataclass(frozen=True)
class Opinion:
    """What an implementation gives for a node; `converted` for the same node in a newer opset."""

    by: By
    values: tuple[Array, ...]
    converted: bool = False


@dataclass(frozen=True)
class Ruling:
    """Which implementations are right and which are wrong; both are empty where there is no majority."""

    right: tuple[By, ...] = ()
    wrong: tuple[By, ...] = ()

    @property
    def decided(self) -> bool:
        return bool(self.wrong)


Same = Callable[[Sequence[Array], Sequence[Array]], bool]


def judge(opinions: Sequence[Opinion], same: Same) -> Ruling:
    """Rule between implementations that differ.

    With three, the two that agree are right. With two, one is wrong if it gives another answer as soon as the node is
    converted to a newer opset, and that answer is the other one's: the meaning of the node did not change.

    Args:
        opinions: at most one an implementation as the file has the node, and one of the converted node.
        same: whether two lists of outputs are equal up to rounding.
    """
    asked = {opinion.by: opinion.values for opinion in opinions if not opinion.converted}
    again = {opinion.by: opinion.values for opinion in opinions if opinion.converted}
    for by, values in asked.items():
        agreeing = tuple(other for other, theirs in asked.items() if same(values, theirs))
        if len(agreeing) > len(asked) / 2 and by in agreeing:
            return Ruling(agreeing, tuple(other for other in asked if other not in agreeing))
    wavering = [by for by, values in asked.items() if by in again and not same(values, again[by])]
    if len(asked) == 2 and len(wavering) == 1:
        (steady,) = (by for by in asked if by != wavering[0])
        if same(asked[steady], again[wavering[0]]):
            return Ruling((steady,), (wavering[0],))
    return Ruling()


@dataclass(frozen=True)
class Difference:
    """The first node at which implementations differ although they were given the same inputs.

    `values` is what each gives at the element at which ONNX Runtime and the evaluation are farthest apart.
    """

    operator: str
    node: str
    output: str
    opset: int
    ruling: Ruling
    values: dict[By, float]

    @property
    def runtime_is_wrong(self) -> bool:
        return RUNTIME in self.ruling.wrong

    @property
    def where(self) -> str:
        name = self.node or self.output
        return f"{self.operator} {name!r} (opset {self.opset})"

    def sentence(self) -> str:
        """Who differs from whom, where, and which one is wrong."""
        given = ", ".join(f"{by}: {value:.6g}" for by, value in self.values.items())
        if not self.ruling.decided:
            return (
                f"{_and(list(self.values))} compute {self.where} differently from the same inputs, and no majority "
                f"says which is right ({given})"
            )
        right, wrong = list(self.ruling.right), list(self.ruling.wrong)
        agree = ", which agree" if len(right) > 1 else ", which gives the same in a newer opset"
        verb = "computes" if len(wrong) == 1 else "compute"
        be = "is" if len(wrong) == 1 else "are"
        return (
            f"{_and(wrong)} {verb} {self.where} differently from {_and(right)}{agree}: {_and(wrong)} {be} wrong there "
            f"({given})"
        )


@dataclass(frozen=True)
class Outcome:
    """The nodes at which implementations differ, given ONNX Runtime's own values: all those at which ONNX Runtime is
    right, up to the first at which it is not, or at which nothing was decided. `adds_up` says whether the nodes, one
    by one, give what the whole graph gave."""

    differences: tuple[Difference, ...] = ()
    adds_up: bool = True


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def within(got: Sequence[Array], wanted: Sequence[Array], allowed: Sequence[Array]) -> bool:
    """Whether each element of `got` is within its allowance of `wanted`; infinite where it may be anything.

    NaN must stand at the same places, and infinity with the same sign, but where float32 overflows.
    """
    return len(got) == len(wanted) and all(
        one.shape == other.shape and not outside(one, other, limit).any()
        for one, other, limit in zip(got, wanted, allowed, strict=True)
    )


def outside(got: Array, wanted: Array, allowed: Array) -> npt.NDArray[np.bool_]:
    """Which elements of `got` are farther from `wanted` than allowed."""
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if got.dtype.kind == "f" and got.dtype.itemsize < 8:
            other = np.where(np.isfinite(other.astype(got.dtype)), other, other.astype(got.dtype))
        if wanted.dtype.kind == "f" and wanted.dtype.itemsize < 8:
            one = np.where(np.isfinite(one.astype(wanted.dtype)), one, one.astype(wanted.dtype))
        near = (one == other) | (np.isnan(one) & np.isnan(other)) | (np.abs(one - other) <= allowed)
    apart: npt.NDArray[np.bool_] = ~(near | np.isinf(allowed))
    return apart
