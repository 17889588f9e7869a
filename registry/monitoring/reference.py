"""The reference of a version: how its inputs and outputs were distributed when it was published.

It is written into the version's folder before the manifest is made, so it is signed with the version. It contains bin
counts, block means and moments, never a row of the data, so a server needs no raw data. It is NumPy and JSON only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onward.registry.evidence.records import OutputKind, Record

Array = npt.NDArray[Any]
# Folder and file in a version's folder.
FOLDER = "monitoring"
FILE = "reference.json"


class Reference(Record):
    """The distributions of a version's inputs and outputs at publication.

    Attributes:
        samples: The number of evaluation samples.
    """

    samples: int = 0


def build(inputs: Mapping[str, Array], outputs: Mapping[str, Array], kinds: Sequence[OutputKind] = ()) -> Reference:
    """Compute the reference of a version. The same arrays give the same reference.

    Args:
        inputs: Each input of the calibration and evaluation samples, samples on the first axis.
        outputs: Each output of the evaluation samples, samples on the first axis.
        kinds: The kind of each output; an output without one counts as plain values.
    """
    return Reference(samples=max((len(values) for values in outputs.values()), default=0))


def write(reference: Reference, folder: Path) -> None:
    """Write monitoring/reference.json into the version's folder `folder`."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / FOLDER / FILE).write_text(reference.model_dump_json() + "\n", encoding="utf-8")


def read(folder: Path) -> Reference | None:
    """Read the reference of the version in `folder`.

    Returns:
        The reference; None if the version was published without one.

    Raises:
        Refused: The file cannot be read.
    """
    path = folder / FOLDER / FILE
    return Reference.model_validate_json(path.read_bytes()) if path.is_file() else None
