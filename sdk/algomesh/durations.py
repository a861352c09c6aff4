"""Durations as people write them."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)")
_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


def parse_duration(option: str, value: float | str) -> float:
    """Seconds of `90`, `"90s"`, `"5m"`, `"2h"`. Raises ValueError."""
    match = _DURATION.fullmatch(str(value).strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= 7 * 86400:
        raise ValueError(f"{option}={value!r} is not a duration; write seconds or '5m', at most 168h")
    return seconds
