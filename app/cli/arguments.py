"""What a person may type where a command wants numbers, an object or settings, each fault said in a few words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.detection import DetectionSettings


def port(text: str) -> int:
    """A TCP port."""
    return int(_number(text, "a port from 0 to 65535", lambda x: 0 <= x <= 65535 and x == int(x)))


def positive(text: str) -> int:
    """A whole number from 1."""
    return int(_number(text, "a whole number from 1", lambda x: x >= 1 and x == int(x)))


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def seconds(text: str) -> float:
    """Seconds, zero or more."""
    return _number(text, "seconds, zero or more", lambda x: 0 <= x < float("inf"))


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        value = float(text)
        if fits(value):
            return value
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not {what}")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object, as in \'{"source": "field"}\'')
    return value


def detection_settings(phrases: list[str], how: dict[str, Any]) -> list[DetectionSettings]:
    """The settings of each phrase. Raises ValueError."""
    from model.detection import DetectionSettings

    each = {}
    for name in ("threshold", "low_threshold"):
        values = how.get(name, [])
        if len(values) not in (0, 1, len(phrases)):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} is given once, or once for each phrase: here {len(phrases)}, not {len(values)}")
        if values:
            each[name] = values * len(phrases) if len(values) == 1 else values
    same = {name: value for name, value in how.items() if name not in ("threshold", "low_threshold")}
    return [
        DetectionSettings(**same, **{name: values[i] for name, values in each.items()}) for i in range(len(phrases))
    ]
