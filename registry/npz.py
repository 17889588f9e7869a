"""Reads .npz files: those that Onward wrote, and those of users, which may be broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onward.registry.errors import UsageError


def arrays(path: Path) -> dict[str, Any]:
    """The arrays of a file that Onward wrote, by name.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    import numpy as np

    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


def read(path: Path) -> dict[str, Any]:
    """The arrays of the file that --input names, each under its name.

    Raises:
        UsageError: there is none, or it is no .npz file of plain arrays, or a part of it is broken.
        OSError: it may not be read, or the disk fails.
    """
    import numpy as np

    where = f"--input {path}"
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise UsageError(f"{where}: is one .npy array; an .npz names each input (numpy.savez)")
        with stored:
            found = dict(stored)
    except (UsageError, MemoryError):
        raise
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{where}: is a folder") from None
    except Exception as error:  # of the zip file, its compression, a member's header, or its data: they share no base
        if isinstance(error, OSError) and error.errno:
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{where}: is no .npz file of plain arrays, or a broken one: {words}") from None
    for name, value in found.items():
        if not isinstance(value, np.ndarray):
            raise UsageError(f"{where}: its member {name!r} is no array (numpy.savez writes arrays alone)")
    return found
