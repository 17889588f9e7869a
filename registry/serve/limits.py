"""What one request to the server may cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        bytes: the largest body.
        seconds: the longest time until the answer.
    """

    bytes: int = 64 * 2**20
    seconds: float = 60.0
