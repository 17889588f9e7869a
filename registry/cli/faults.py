"""What an exception that is not Onward's own means to whoever runs a command: one line, and an exit code."""

from __future__ import annotations

import errno

from onward.registry.errors import MachineFault, OnwardError, StoreUnreachable, UsageError
from onward.registry.store import reach
from onward.registry.uri import hidden

_LONGEST = 300
_WHAT_TO_DO = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk",
    errno.EROFS: "choose a place that can be written (XDG_CACHE_HOME for the cache, TMPDIR for temporary files)",
    errno.EACCES: "look at its permissions (XDG_CACHE_HOME names another cache, TMPDIR another temporary folder)",
    errno.EPERM: "look at its permissions",
}


def explained(error: Exception) -> OnwardError:
    """The error of Onward's that stands for `error`: itself, where it is one.

    Nothing is said of what was changed: whoever knows that, says it where it is known.
    """
    if isinstance(error, OnwardError):
        return error
    module = type(error).__module__.partition(".")[0]
    # Told by name: none of these is imported for a command that does not need it.
    if module == "mlflow":
        return StoreUnreachable(f"the MLflow store answered with an error: {_words(error)}")
    if module in ("requests", "urllib3", "sqlalchemy", "psycopg", "psycopg2", "pymysql", "botocore", "boto3"):
        return StoreUnreachable(f"the MLflow store could not be used: {_words(error)}. {reach.ADVICE}")
    if module == "onnxruntime":
        return MachineFault(f"ONNX Runtime failed while it ran the model: {_words(error)}")
    if isinstance(error, UnicodeEncodeError) and "surrogates" in str(error):
        return UsageError("an argument, a name or a variable of the environment holds bytes that are no UTF-8")
    if isinstance(error, MemoryError):
        return MachineFault("there is not enough memory for this")
    if isinstance(error, ModuleNotFoundError):
        return UsageError(f"the Python package {error.name} is needed for this and is not installed")
    if isinstance(error, ConnectionError | TimeoutError):
        return StoreUnreachable(f"the store could not be reached: {_words(error)}. {reach.ADVICE}")
    if isinstance(error, OSError):
        return _of_the_system(error)
    return MachineFault(
        f"unexpected {type(error).__name__}: {_words(error)}; run it again with --debug (onward --debug ...) for the "
        "traceback. This is a defect of Onward: please report it"
    )


def _of_the_system(error: OSError) -> MachineFault:
    what = error.strerror or _words(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    todo = _WHAT_TO_DO.get(error.errno or 0)
    return MachineFault(f"{where}{what}{f'; {todo}' if todo else ''}")


def _words(error: Exception) -> str:
    """What an exception says, in one line, without anything secret."""
    return hidden(" ".join(str(error).split()))[:_LONGEST] or type(error).__name__
