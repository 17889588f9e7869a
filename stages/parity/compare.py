"""How near: one output against its reference, as numbers and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.records import CaseVerdict, OutputComparison
from onward.registry.evidence.similarity import agreement, cosine, signal_to_noise

Array = npt.NDArray[Any]

# How many times an element's own rounding error, or its unit in the last place, is still rounding: another order of
# summation costs a small multiple of either, a wrong weight or operator far more.
ROUNDING = 10.0
# How many times the spread of an element, over runs in which every weight and input moves by one unit in the last
# place, is still rounding (docs/decisions/0046). The spread is a root mean square of few runs (check.SHAKES): with
# four, it is under a fiftieth of its expectation with a probability of 3e-7. Weights rounded to TF32 move by 2 ** 12.
SPREAD = 100.0


def compare(
    name: str,
    reference: Array,
    got: Array,
    rtol: float,
    atol: float,
    truth: Array | None = None,
    spread: Array | None = None,
) -> OutputComparison:
    """Compare `got` with `reference` element by element, in float64.

    An element is out of tolerance where |got - reference| > atol + rtol * |reference| (numpy.allclose's rule, with
    the reference on the right) and its own rounding does not explain the difference (`_allowance`). Only the element
    itself decides: what else stands in the output changes nothing. NaN and infinity must stand in the same places,
    infinity with the same sign. Integers and booleans must be equal: a class that changed is not "nearly" right.

    Args:
        name: the output's name.
        reference: what the original answers, of any shape.
        got: what is compared with it.
        rtol: relative tolerance.
        atol: absolute tolerance, in the output's unit.
        truth: the reference computed in float64. An integer that float64 decides otherwise, and a value that
            overflowed in the reference alone, are not judged.
        spread: how far each element of the reference moves when weights and inputs move by one unit in the last place
            (root mean square, the reference's shape). An integer that moves is not judged.

    Returns:
        figures and a verdict.
    """
    if got.dtype != reference.dtype:
        return _mismatch(name, "dtype mismatch", f"{got.dtype} instead of {reference.dtype}")
    if got.shape != reference.shape:
        return _mismatch(name, "shape mismatch", f"{list(got.shape)} instead of {list(reference.shape)}")
    # What float64 answers in another shape says nothing of these elements.
    truth = None if truth is None or truth.shape != reference.shape else truth.astype(np.float64)
    spread = None if spread is None or spread.shape != reference.shape else spread.astype(np.float64)
    if reference.dtype.kind not in "fiub":
        same = bool(np.array_equal(reference, got))
        return OutputComparison(output=name, verdict="ok" if same else "out of tolerance", share_out=float(not same))
    is_float = reference.dtype.kind == "f"
    wanted, actual = reference.astype(np.float64), got.astype(np.float64)
    judged = np.ones(reference.shape, dtype=bool)
    if truth is not None:
        judged &= ~(np.isfinite(truth) & ~np.isfinite(wanted)) if is_float else truth == wanted
    if spread is not None and not is_float:
        judged &= spread == 0
    finite = np.isfinite(wanted)
    odd = judged & ~(np.isfinite(actual) & finite)
    if not np.array_equal(wanted[odd], actual[odd], equal_nan=True):
        close = np.isclose(actual, wanted, rtol=rtol, atol=atol, equal_nan=True)
        return OutputComparison(
            output=name,
            verdict="NaN mismatch",
            share_out=float(np.mean(~close[judged])),
            reason="NaN or infinity does not stand where the reference has it",
        )
    plain = judged & finite & np.isfinite(actual)
    difference = np.abs(actual[plain] - wanted[plain])
    # Integers not by their difference: a float64 holds no large int64.
    out = difference > atol + rtol * np.abs(wanted[plain]) if is_float else reference[plain] != got[plain]
    error = reference_error = None
    if is_float and (truth is not None or spread is not None):
        centre, allowance = _allowance(reference, truth, spread)
        out &= np.abs(actual[plain] - centre[plain]) > allowance[plain]
        if truth is not None:
            known = plain & np.isfinite(truth)
            error = _largest(np.abs(actual[known] - truth[known]))
            reference_error = _largest(np.abs(wanted[known] - truth[known]))
    share = float(out.sum() / reference.size) if reference.size else 0.0
    # Relative to the reference, where that is no smaller than atol: below, the ratio says nothing.
    scale = np.maximum(np.abs(wanted[plain]), max(atol, np.finfo(np.float64).tiny))
    return OutputComparison(
        output=name,
        verdict="out of tolerance" if share > 0 else "ok",
        max_abs=_largest(difference) or 0.0,
        mean_abs=float(difference.mean()) if difference.size else 0.0,
        max_rel=_largest(difference / scale) or 0.0,
        max_ulp=_ulps(reference[plain], got[plain]),
        cosine=cosine(wanted[plain], actual[plain]) if is_float else None,
        snr_db=signal_to_noise(wanted[plain], difference) if is_float else None,
        agreement=agreement(reference, got) if is_float else None,
        share_out=share,
        out_abs=_largest(difference[out]),
        error=error,
        reference_error=reference_error,
    )


def squared_change(one: Array, other: Array) -> Array:
    """The square of the difference of each element, in float64; zero where that is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        square = np.square(one.astype(np.float64) - other.astype(np.float64))
    return np.where(np.isfinite(square), square, 0)


def unexplained(reference: Array, truth: Array, spread: Array | None) -> Array:
    """Where the reference in float64 differs from the reference by more than its own arithmetic can explain.

    Without a spread, what is relative to the element alone counts: a tenth of it, which no float keeps so badly unless
    it is what cancellation leaves.

    Args:
        reference: a float output of the original.
        truth: the same in float64, of the same shape.
        spread: as `compare` takes it.

    Returns:
        a boolean for each element; False where either is not finite.
    """
    wanted = reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        own = np.abs(wanted - truth)
        if spread is None:
            return np.asarray(np.isfinite(own) & (own > 0.1 * np.maximum(np.abs(wanted), np.abs(truth))))
        return np.asarray(np.isfinite(own) & (own > SPREAD * spread + ROUNDING * _ulp(reference)))


def _allowance(reference: Array, truth: Array | None, spread: Array | None) -> tuple[Array, Array]:
    """(what an answer is compared with, how far from it rounding may take it), element by element.

    The first is float64's answer where that is to be believed, else the reference itself. The second is the largest of
    ROUNDING times the element's distance between float32 and float64, ROUNDING times its unit in the last place, and
    SPREAD times its spread.
    """
    centre, allowance = reference.astype(np.float64), ROUNDING * _ulp(reference)
    if spread is not None:
        allowance = np.maximum(allowance, SPREAD * spread)
    if truth is not None:
        known = np.isfinite(truth) & np.isfinite(centre)
        if spread is not None:
            known &= ~unexplained(reference, truth, spread)
        own = np.zeros(reference.shape)
        own[known] = np.abs(centre[known] - truth[known])
        centre, allowance = np.where(known, truth, centre), np.maximum(allowance, ROUNDING * own)
    return centre, allowance


def _ulp(values: Array) -> Array:
    """The distance to the next representable number, in float64; zero where a value is not finite."""
    finite = np.isfinite(values)
    return np.where(finite, np.abs(np.spacing(np.where(finite, values, 0))), 0).astype(np.float64)


def _largest(values: Array) -> float | None:
    return float(values.max()) if values.size else None


def _ulps(reference: Array, got: Array) -> int | None:
    """The largest number of representable values between two, counted over the bits as signed integers in order."""
    if reference.dtype.kind != "f" or reference.size == 0:
        return None
    kind = np.dtype(f"i{reference.dtype.itemsize}")
    lowest = np.iinfo(kind).min

    def ordered(values: Array) -> Array:
        bits = np.ascontiguousarray(values).view(kind)
        # Negative floats count downwards from minus zero; in Python integers, for the distance may need 65 bits.
        return np.where(bits < 0, lowest - bits, bits)

    one, other = ordered(reference), ordered(got)
    if kind.itemsize < 8:
        return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())
    return max(abs(int(a) - int(b)) for a, b in zip(one.tolist(), other.tolist(), strict=True))


def _mismatch(name: str, verdict: CaseVerdict, reason: str) -> OutputComparison:
    return OutputComparison(output=name, verdict=verdict, reason=reason)
