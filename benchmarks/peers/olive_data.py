"""The data script that Olive's configuration names, to read calibration samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from olive.data.registry import Registry


@Registry.register_dataset()  # type: ignore[untyped-decorator]  # Olive is not installed here
def recorded(path: str, batch: int = 8, **_: Any) -> list[tuple[dict[str, Any], int]]:
    """The samples of an .npz file of Onward's data stage: batches of feeds, each with an unused label."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "label"}
    count = len(next(iter(arrays.values()))) // batch
    return [({n: a[i * batch : (i + 1) * batch] for n, a in arrays.items()}, 0) for i in range(count)]
