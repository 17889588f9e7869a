"""How near: one output against its reference, as numbers and a verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from registry.evidence import CaseVerdict, OutputComparison

Array = npt.NDArray[Any]


def compare(name: str, reference: Array, got: Array, rtol: float, atol: float) -> OutputComparison:
    """Compare `got` with `reference` element by element, in float64.

    An element is out of tolerance where |got - reference| > atol + rtol * |reference| (numpy.allclose's rule, with
    the reference on the right). NaN and infinity must stand in the same places, infinity with the same sign. Integers
    and booleans are held to equality: a class that changed is not "nearly" right.
    """
    if got.dtype != reference.dtype:
        return _mismatch(name, "dtype mismatch", f"{got.dtype} instead of {reference.dtype}")
    if got.shape != reference.shape:
        return _mismatch(name, "shape mismatch", f"{list(got.shape)} instead of {list(reference.shape)}")
    if reference.dtype.kind not in "fiub":
        same = bool(np.array_equal(reference, got))
        return OutputComparison(output=name, verdict="ok" if same else "out of tolerance", share_out=float(not same))
    if reference.dtype.kind != "f":
        rtol = atol = 0.0
    wanted, actual = reference.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], actual[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        share = float(np.mean(~np.isclose(actual, wanted, rtol=rtol, atol=atol, equal_nan=True)))
        return OutputComparison(
            output=name,
            verdict="NaN mismatch",
            share_out=share,
            reason="NaN or infinity does not stand where the reference has it",
        )
    wanted, actual = wanted[finite], actual[finite]
    if wanted.size == 0:
        return OutputComparison(output=name, verdict="ok", max_abs=0.0, mean_abs=0.0, max_rel=0.0, share_out=0.0)
    difference = np.abs(actual - wanted)
    share = float(np.mean(difference > atol + rtol * np.abs(wanted)))
    # Relative to the reference, where that is no smaller than atol: below, the ratio says nothing.
    scale = np.maximum(np.abs(wanted), max(atol, np.finfo(np.float64).tiny))
    return OutputComparison(
        output=name,
        verdict="out of tolerance" if share > 0 else "ok",
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        max_rel=float((difference / scale).max()),
        share_out=share,
    )


def agreement(reference: Array, got: Array) -> float | None:
    """Share of rows whose largest entry along the last axis is the same one; null where there is no class axis."""
    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.shape != got.shape or reference.shape[0] == 0:
        return None
    return float(np.mean(reference.argmax(-1) == got.argmax(-1)))


def _mismatch(name: str, verdict: CaseVerdict, reason: str) -> OutputComparison:
    return OutputComparison(output=name, verdict=verdict, reason=reason)
