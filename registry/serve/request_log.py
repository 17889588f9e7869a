"""One line of the log per request, with its identifier and the version (`--verbose`); fields of JSON with `--json`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from onward.registry.text import printable

if TYPE_CHECKING:
    from onward.registry.serve.observer import Observation

_LOG = logging.getLogger("onward.serve.requests")
# The fields of a record besides its text.
FIELDS = ("request", "model", "version", "entry", "outcome", "cause", "latency_us", "queue_us", "compute_us")


class RequestLog:
    """Logs each request (an Observer)."""

    def seen(self, request: Observation) -> None:
        """Log a request.

        Args:
            request: the request.
        """
        text = "request %s: %s version %s: %s in %.0f µs"
        facts = (printable(request.request) or "-", request.model, request.version, request.outcome, request.latency_us)
        _LOG.debug(text, *facts, extra={name: getattr(request, name) for name in FIELDS})


def is_on() -> bool:
    """Whether requests are logged."""
    return _LOG.isEnabledFor(logging.DEBUG)
