"""Times in reports and in MLflow."""

from __future__ import annotations

from datetime import datetime


def moment(text: str) -> datetime | None:
    """Parse a time of a report; None if the report contains none.

    Args:
        text: the time in ISO 8601, or "".
    """
    return datetime.fromisoformat(text) if text else None


def to_ms(time: datetime) -> int:
    """A time in milliseconds since the epoch, as MLflow stores times."""
    return int(time.timestamp() * 1000)
