"""Compares one output with its reference, and gives figures and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onward.registry.evidence.records import CaseVerdict, OutputComparison
from onward.registry.evidence.similarity import agreement, cosine, signal_to_noise

Array = npt.NDArray[Any]

# A difference counts as rounding up to this multiple of the element's own rounding error, or of its unit in the last
# place (ulp). Another order of summation costs a small multiple of either, a wrong weight or operator far more.
ROUNDING = 10.0
# A difference counts as rounding up to this multiple of the element's spread over runs in which every weight and input
# moves by one ulp (docs/decisions/0046). The spread is the root mean square of check.SHAKES runs. With eight, it is
# under 1/25 of its expectation with a probability of 7e-11; with four it was 5e-6, too often for outputs of 10^5
# elements. Rounding weights to TF32 moves them by up to 2^12 ulps.
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

    An element is out of tolerance if |got - reference| > atol + rtol * |reference| (the rule of numpy.allclose) and
    its own rounding error does not explain the difference (`_allowance`). The other elements of the output do not
    matter. NaN and infinity must be at the same places, infinity with the same sign. Integers and booleans must be
    equal, because a class that changed is wrong, however near its number is.

    Args:
        name: Name of the output.
        reference: The original's output, of any shape.
        got: The output to compare, which must have the same shape and dtype.
        rtol: Relative tolerance.
        atol: Absolute tolerance, in the output's unit.
        truth: The reference computed in float64. Integers that differ in float64, and values that overflow in the
            reference but not in float64, are not judged.
        spread: Change of each element of the reference when weights and inputs move by one ulp (root mean square, in
            the reference's shape). Integers that change are not judged.

    Returns:
        The figures and the verdict.
    """
    if got.dtype != reference.dtype:
        return _mismatch(name, "dtype mismatch", f"{got.dtype} instead of {reference.dtype}")
    if got.shape != reference.shape:
        return _mismatch(name, "shape mismatch", f"{list(got.shape)} instead of {list(reference.shape)}")
    # A float64 result of another shape does not correspond to these elements.
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
            reason="NaN or infinity is not at the same places as in the reference",
        )
    plain = judged & finite & np.isfinite(actual)
    difference = np.abs(actual[plain] - wanted[plain])
    # Integers are compared for equality, because float64 cannot represent large int64 exactly.
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
    # Relative to the reference, or to atol if that is larger: the ratio to a value near 0 is meaningless.
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
    """Squared difference of each element, in float64; 0 where it is not finite.

    Args:
        one: An array.
        other: An array of the same shape.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        square = np.square(one.astype(np.float64) - other.astype(np.float64))
    return np.where(np.isfinite(square), square, 0)


def unexplained(reference: Array, truth: Array, spread: Array | None) -> Array:
    """Find elements whose float64 result differs from the reference by more than rounding explains.

    The limit is SPREAD times the spread plus ROUNDING ulps. Without a spread, it is a tenth of the element; rounding
    alone exceeds that only after cancellation.

    Args:
        reference: A float output of the original.
        truth: The same in float64, of the same shape.
        spread: As for `compare`.

    Returns:
        A boolean per element; False where either value is not finite.
    """
    wanted = reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(wanted - truth)
        if spread is None:
            return np.asarray(np.isfinite(error) & (error > 0.1 * np.maximum(np.abs(wanted), np.abs(truth))))
        return np.asarray(np.isfinite(error) & (error > SPREAD * spread + ROUNDING * _ulp(reference)))


def magnitude(values: Array) -> float:
    """The largest finite absolute value; 0 if there is none, or if the values are not numbers."""
    if values.dtype.kind not in "fiub":
        return 0.0
    return float(np.abs(values[np.isfinite(values)].astype(np.float64)).max(initial=0.0))


def _allowance(reference: Array, truth: Array | None, spread: Array | None) -> tuple[Array, Array]:
    """(centre, largest distance from it that counts as rounding), per element.

    The centre is the float64 result if it is plausible (`unexplained`), else the reference. The distance is the largest
    of ROUNDING times the element's error in float32, ROUNDING ulps, and SPREAD times its spread.
    """
    centre, allowance = reference.astype(np.float64), ROUNDING * _ulp(reference)
    if spread is not None:
        allowance = np.maximum(allowance, SPREAD * spread)
    if truth is not None:
        known = np.isfinite(truth) & np.isfinite(centre)
        if spread is not None:
            known &= ~unexplained(reference, truth, spread)
        error = np.zeros(reference.shape)
        error[known] = np.abs(centre[known] - truth[known])
        centre, allowance = np.where(known, truth, centre), np.maximum(allowance, ROUNDING * error)
    return centre, allowance


def _ulp(values: Array) -> Array:
    """The distance to the next representable number, as float64; 0 where a value is not finite."""
    finite = np.isfinite(values)
    return np.where(finite, np.abs(np.spacing(np.where(finite, values, 0))), 0).astype(np.float64)


def _largest(values: Array) -> float | None:
    return float(values.max()) if values.size else None


def _ulps(reference: Array, got: Array) -> int | None:
    """The largest distance in representable values, counted with the bits read as ordered signed integers."""
    if reference.dtype.kind != "f" or reference.size == 0:
        return None
    kind = np.dtype(f"i{reference.dtype.itemsize}")
    lowest = np.iinfo(kind).min

    def ordered(values: Array) -> Array:
        bits = np.ascontiguousarray(values).view(kind)
        # Negative floats count downwards from minus zero.
        return np.where(bits < 0, lowest - bits, bits)

    one, other = ordered(reference), ordered(got)
    if kind.itemsize < 8:
        return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())
    # Python integers, because the distance of two float64 may need 65 bits.
    return max(abs(int(first) - int(second)) for first, second in zip(one.tolist(), other.tolist(), strict=True))


def _mismatch(name: str, verdict: CaseVerdict, reason: str) -> OutputComparison:
    return OutputComparison(output=name, verdict=verdict, reason=reason)
