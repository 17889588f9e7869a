"""How faithful a graph of lower precision is over the evaluation set, where no label says what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.parity.compare import cosine, signal_to_noise

Arrays = Mapping[str, npt.NDArray[Any]]


class Fidelity(NamedTuple):
    """`snr_db`: signal over noise across all samples, of the float output that has the least. `cosine`: of the worst
    sample and float output, each taken as one vector. Null where no output is float, or none has a signal."""

    snr_db: float | None
    cosine: float | None


def fidelity(wanted: Arrays, got: Arrays) -> Fidelity:
    """Compare outputs by name, samples on the first axis, with the reference's.

    Where the batch is fixed, `got` may lack the samples of a last batch that was not full; they are left out. NaN or
    infinity where the reference has none is the worst there is: a cosine of -1 and an SNR of minus infinity.
    """
    ratios, angles = [], []
    for name, reference in wanted.items():
        if reference.dtype.kind != "f":
            continue
        actual = got[name].astype(np.float64)
        expected = reference[: len(actual)].astype(np.float64)
        finite = np.isfinite(expected)
        if not np.isfinite(actual[finite]).all():
            return Fidelity(-np.inf, -1.0)
        expected, actual = np.where(finite, expected, 0.0), np.where(finite, actual, 0.0)
        ratios.append(signal_to_noise(expected.ravel(), (actual - expected).ravel()))
        angles += [cosine(one.ravel(), other.ravel()) for one, other in zip(expected, actual, strict=True)]
    return Fidelity(_least(ratios), _least(angles))


def _least(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)
