"""How near: one output against its reference, as numbers and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from registry.fidelity import agreement, cosine, signal_to_noise
from registry.vocabulary import CaseVerdict, OutputComparison

Array = npt.NDArray[Any]

# How many times float32's own rounding error, as the reference shows it against itself in float64, is still rounding:
# another order of summation costs a small multiple of it, a wrong weight or operator far more.
ROUNDING = 10.0


def compare(
    name: str, reference: Array, got: Array, rtol: float, atol: float, truth: Array | None = None
) -> OutputComparison:
    """Compare `got` with `reference` element by element, in float64.

    An element is out of tolerance where |got - reference| > atol + rtol * |reference| (numpy.allclose's rule, with
    the reference on the right). NaN and infinity must stand in the same places, infinity with the same sign. Integers
    and booleans are held to equality: a class that changed is not "nearly" right.

    `truth` is the reference computed in float64. With it, what the reference's own rounding decides is not held
    against `got`: an element within ROUNDING times the reference's largest error of the truth is in tolerance; an
    integer that float64 decides otherwise, or a value that overflowed in the reference alone, is not judged.
    """
    if got.dtype != reference.dtype:
        return _mismatch(name, "dtype mismatch", f"{got.dtype} instead of {reference.dtype}")
    if got.shape != reference.shape:
        return _mismatch(name, "shape mismatch", f"{list(got.shape)} instead of {list(reference.shape)}")
    if truth is not None and truth.shape != reference.shape:
        truth = None  # what float64 answers in another shape says nothing of these elements
    if reference.dtype.kind not in "fiub":
        same = bool(np.array_equal(reference, got))
        return OutputComparison(output=name, verdict="ok" if same else "out of tolerance", share_out=float(not same))
    is_float = reference.dtype.kind == "f"
    wanted, actual = reference.astype(np.float64), got.astype(np.float64)
    true = None if truth is None else truth.astype(np.float64)
    judged = np.ones(reference.shape, dtype=bool)
    if true is not None:
        judged = ~(np.isfinite(true) & ~np.isfinite(wanted)) if is_float else true == wanted
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
    if true is not None and is_float:
        known = np.isfinite(true[plain])
        errors = np.abs(actual[plain] - true[plain])[known]
        own = np.abs(wanted[plain] - true[plain])[known]
        error, reference_error = _largest(errors), _largest(own)
        out[known] &= errors > ROUNDING * (reference_error or 0.0)
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
        error=error,
        reference_error=reference_error,
    )


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
