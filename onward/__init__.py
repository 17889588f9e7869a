"""Turns trained models into verified, measured ONNX versions and promotes them.

    from onward import InferenceSession, promote, rollback, status, check

    session = InferenceSession("digits-cnn@production")
    promote("digits-cnn", "staging", reason="better on sevens")

Each name is imported on first use, so that `import onward` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.registry.errors import (
        LostRace,
        MachineFault,
        NotReady,
        OnwardError,
        Refused,
        StoreMissing,
        StoreUnreachable,
        UsageError,
    )
    from onward.registry.inference.session import InferenceSession, UnprovenLog
    from onward.registry.operations.overview import check, history, status
    from onward.registry.operations.promotion import promote, reconcile, rollback
    from onward.registry.store.resolve import resolve

    __version__: str

_ERRORS = (
    "LostRace", "MachineFault", "NotReady", "OnwardError", "Refused", "StoreMissing", "StoreUnreachable",
    "UsageError",
)  # fmt: skip
_HOMES = {
    "InferenceSession": "onward.registry.inference.session",
    "UnprovenLog": "onward.registry.inference.session",
    "check": "onward.registry.operations.overview",
    "history": "onward.registry.operations.overview",
    "promote": "onward.registry.operations.promotion",
    "reconcile": "onward.registry.operations.promotion",
    "resolve": "onward.registry.store.resolve",
    "rollback": "onward.registry.operations.promotion",
    "status": "onward.registry.operations.overview",
    **dict.fromkeys(_ERRORS, "onward.registry.errors"),
}

__all__ = [
    "InferenceSession",
    "LostRace",
    "MachineFault",
    "NotReady",
    "OnwardError",
    "Refused",
    "StoreMissing",
    "StoreUnreachable",
    "UnprovenLog",
    "UsageError",
    "__version__",
    "check",
    "history",
    "promote",
    "reconcile",
    "resolve",
    "rollback",
    "status",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onward")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
