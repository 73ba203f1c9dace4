"""Read the durations and clock times of `budget` and `finish_by`."""

import re
from datetime import datetime, timedelta

SHORTEST_S = 10.0
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?")
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0)
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


def duration_seconds(text: str) -> float | None:
    """Return a duration in seconds.

    Args:
        text: numbers with the units d, h, min and s, in this order and without spaces.

    Returns:
        The seconds; None: the text is no such duration.

    >>> duration_seconds("45min"), duration_seconds("1h30min"), duration_seconds("45")
    (2700.0, 5400.0, None)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        return None
    return sum(unit * float(number or 0) for unit, number in zip(_UNITS_S, match.groups(), strict=True))


def is_clock_time(text: str) -> bool:
    """Return whether `next_time` can read a text.

    Args:
        text: HH:MM, or a date and time such as 2027-03-01T07:30.
    """
    return next_time(text, datetime(2000, 1, 1)) is not None


def one_end(finish_by: str) -> str:
    """Return the message about several runs that would all have one end.

    Args:
        finish_by: the time.
    """
    return (
        f"finish_by={finish_by}: the first of several runs would take all the time until then, and the others would "
        "begin after it. Give each run a duration instead: budget=..."
    )


def next_time(text: str, now: datetime) -> datetime | None:
    """Return the next moment at which the clock shows a time, or the moment of a date and time.

    Args:
        text: HH:MM, or a date and time such as 2027-03-01T07:30.
        now: the present, in local time without a zone.

    Returns:
        The moment in local time; None: the text is no time.

    >>> next_time("07:30", datetime(2026, 11, 29, 22, 0)).isoformat()
    '2026-11-30T07:30:00'
    """
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        if ":" not in text:
            return None
        try:
            local = datetime.fromisoformat(text.strip()).astimezone().replace(tzinfo=None)
            local.timestamp()
        except (ValueError, OverflowError, OSError):  # no time, or one that the clocks of computers do not have
            return None
        return local
    moment = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    return moment if moment > now else moment + timedelta(days=1)
