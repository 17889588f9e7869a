"""Facts about a loaded version that the server needs: its name, its files, its threads and its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onward.registry import processors
from onward.registry.artifact.replay import BUNDLE
from onward.registry.artifact.serving_plan import PROVIDERS
from onward.registry.inference.model import swept_batch
from onward.registry.npz import arrays
from onward.registry.serve.protocol import protocol_type

if TYPE_CHECKING:
    from onward.registry.evidence.records import TensorSpec
    from onward.registry.inference.model import Loaded, Metadata

# Triton's DataType (model_config.proto), by its numbers.
CONFIG_TYPES = (
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16",
    "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
)  # fmt: skip
# Runs of the recorded inputs before a version gets requests, because first runs allocate memory.
WARM_UPS = 3
# The largest batch if the version has no batch sweep.
DEFAULT_BATCH = 32


def version_of(loaded: Loaded) -> str:
    """The version of a loaded model, as responses name it; the beginning of its digest for a file."""
    version = loaded.origin.get("version")
    return str(version) if version else sha256_of(loaded)[:12] or "1"


def sha256_of(loaded: Loaded) -> str:
    """The digest of a loaded model; "" if it is not known."""
    return str(loaded.origin.get("sha256", ""))


def identity_of(loaded: Loaded) -> tuple[str, str]:
    """The digests of a loaded model and of all files of its version; two versions with equal ones are the same."""
    return sha256_of(loaded), str(loaded.origin.get("manifest", ""))


def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol describes them: name, datatype and shape, with -1 for an open size.

    Args:
        specs: the inputs or outputs of the graph.
    """
    return [
        {
            "name": spec.name,
            "datatype": protocol_type(spec.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape or ()],
        }
        for spec in specs
    ]


def config(name: str, found: Metadata) -> dict[str, Any]:
    """The part of Triton's model configuration that a client needs to build a request.

    `max_batch_size` is 0, which means that `dims` are whole shapes, as the protocol's metadata have them.

    Args:
        name: the model's name.
        found: the model.
    """

    def specs(of: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {"name": one["name"], "data_type": _config_type(one["datatype"]), "dims": one["shape"]}
            for one in tensors(of)
        ]

    facts = {"name": name, "platform": f"onward_{found.providers[0]}", "max_batch_size": 0}
    return facts | {"input": specs(found.inputs), "output": specs(found.outputs)}


def _config_type(datatype: str) -> str:
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return name if name in CONFIG_TYPES else CONFIG_TYPES[0]


def folder_of(loaded: Loaded) -> Path:
    """The folder of a version: it contains files for other runtimes in providers/NAME."""
    parent = loaded.path.parent
    return parent.parent.parent if parent.parent.name == PROVIDERS else parent


def warm_up(loaded: Loaded) -> None:
    """Run a model some times on its recorded inputs, if it has any.

    Raises:
        OnwardError: the model rejects its recorded inputs.
    """
    file = folder_of(loaded) / BUNDLE / "inputs.npz"
    if file.is_file():
        recorded = loaded.checked(arrays(file))
        for _ in range(WARM_UPS):
            loaded.run(recorded)


def workers_for(loaded: Loaded) -> int:
    """How many runs of a model fit on the processors of this process, by the threads of one run.

    A container's CPU quota limits both: `processors.count` knows it, and the session options were fitted to it.
    """
    served = loaded.metadata().served
    threads = (served.options.threads if served else None) or processors.count()
    return max(1, processors.count() // threads)


def largest_batch(loaded: Loaded, wanted: int | None) -> int:
    """The most samples that requests may be joined to; 0 if requests of this version cannot be joined.

    Args:
        loaded: the model.
        wanted: the limit that the user set; None for the size with the best throughput in the version's batch sweep.
    """
    return loaded.joined(wanted or swept_batch(loaded) or DEFAULT_BATCH)


def samples_of(axes: Mapping[str, int | None], given: Mapping[str, Any]) -> int:
    """The number of samples of a request; 1 if no input counts them.

    Args:
        axes: the axis of samples of each input.
        given: the inputs by name.
    """
    for name, value in given.items():
        axis = axes.get(name)
        if axis is not None and np.ndim(value) > axis:
            return int(np.shape(value)[axis])
    return 1
