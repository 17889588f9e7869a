"""Translate any exception into one of Onward's errors, so that a command ends with one line and an exit code."""

from __future__ import annotations

import errno

from onward.registry.errors import MachineFault, OnwardError, StoreUnreachable, UsageError
from onward.registry.store import reach
from onward.registry.store.connection import excerpt

_WHAT_TO_DO = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space on that disk",
    errno.EROFS: "choose a writable folder (XDG_CACHE_HOME for the cache, TMPDIR for temporary files)",
    errno.EACCES: "look at its permissions (XDG_CACHE_HOME names another cache, TMPDIR another temporary folder)",
    errno.EPERM: "look at its permissions",
}


def explained(error: Exception) -> OnwardError:
    """Translate an exception into one of Onward's errors, which says what failed and what to do.

    The message does not say what was changed before, because only the raising code knows that.

    Args:
        error: any exception. An error of Onward's own is returned unchanged.
    """
    if isinstance(error, OnwardError):
        return error
    module = type(error).__module__.partition(".")[0]
    # The module's name is compared, because these packages are imported only by the commands that need them.
    if module == "mlflow":
        return StoreUnreachable(f"the MLflow store answered with an error: {_words(error)}")
    if module in ("requests", "urllib3", "sqlalchemy", "psycopg", "psycopg2", "pymysql", "botocore", "boto3"):
        return StoreUnreachable(f"the MLflow store could not be used: {_words(error)}. {reach.ADVICE}")
    if module == "onnxruntime":
        return MachineFault(f"ONNX Runtime failed while it ran the model: {_words(error)}")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in str(error):
        return UsageError("an argument, a name or an environment variable contains bytes that are not UTF-8")
    if isinstance(error, MemoryError):
        return MachineFault("this machine does not have enough memory for this command")
    if isinstance(error, ModuleNotFoundError):
        return UsageError(f"this command needs the Python package {error.name}, which is not installed")
    if isinstance(error, ConnectionError | TimeoutError):
        return StoreUnreachable(f"the store could not be reached: {_words(error)}. {reach.ADVICE}")
    if isinstance(error, OSError):
        return _of_the_system(error)
    return MachineFault(
        f"unexpected {type(error).__name__}: {_words(error)}. This is a defect of Onward: run the command again with "
        "`onward --debug ...`, and please report it with the traceback"
    )


def _of_the_system(error: OSError) -> MachineFault:
    what = error.strerror or _words(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    todo = _WHAT_TO_DO.get(error.errno or 0)
    return MachineFault(f"{where}{what}{f'; {todo}' if todo else ''}")


def _words(error: Exception) -> str:
    """The beginning of an exception's message, on one line and without secrets."""
    return excerpt(str(error)) or type(error).__name__
