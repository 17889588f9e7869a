"""Reads .npz files: Onward's own, and those of users, which may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onward.registry.errors import UsageError


def arrays(path: Path) -> dict[str, Any]:
    """Read a file that Onward wrote.

    Args:
        path: The .npz file.

    Returns:
        The arrays by name.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: The file is damaged.
    """
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def read(path: Path) -> dict[str, Any]:
    """Read the file that --input names.

    Args:
        path: The .npz file.

    Returns:
        The arrays by name.

    Raises:
        UsageError: The file is missing, is damaged, or is not an .npz file of plain arrays.
        OSError: The file cannot be read.
    """
    import numpy as np

    where = f"--input {path}"
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise UsageError(f"{where}: contains one .npy array; an .npz names each input (numpy.savez)")
        with stored:
            found = dict(stored)
    except (UsageError, MemoryError):
        raise
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{where}: is a folder") from None
    except Exception as error:  # the zip file, its compression, headers and data raise errors without a common base
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{where}: is not an .npz file of plain arrays, or is damaged: {reason}") from None
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise UsageError(f"{where}: its member {name!r} is not an array (numpy.savez writes only arrays)")
    return found
