"""What the sliders of the page can say, checked. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

MESSAGE_MAX = 2048  # bytes of one control message


@dataclass(frozen=True)
class Settings:
    """Everything a page may change during a call."""

    kbps: float = 8.0  # target of the encoder, kbit/s
    loss: float = 0.0  # percent of datagrams
    delay_ms: float = 0.0  # one way
    link_kbps: float = 0.0  # bottleneck of the network, headers included; 0 is unlimited
    yaw: float = 0.0  # the head is turned by these, degrees
    pitch: float = 0.0
    roll: float = 0.0
    browser: bool = False  # the page draws its own pictures; Python forwards the packets and follows

    def changed(self, message: dict[str, Any]) -> Settings:
        """A copy with the values of a message; ValueError with a sentence when one is unknown or out of range."""
        for name, value in message.items():
            if name not in RANGES:
                raise ValueError(f"There is no setting {name!r}; there are {', '.join(RANGES)}.")
            low, high = RANGES[name]
            if isinstance(value, bool) != (name == "browser") or not isinstance(value, bool | int | float):
                raise ValueError(f"The setting {name} cannot be {value!r}.")
            if not low <= value <= high:  # nor is NaN; whole numbers may be too large for a float
                raise ValueError(f"The setting {name} is {value!s:.20}; it goes from {low:g} to {high:g}.")
        return replace(self, **message)


RANGES: dict[str, tuple[float, float]] = {
    "kbps": (0.5, 64), "loss": (0, 50), "delay_ms": (0, 1000), "link_kbps": (0, 1000),
    "yaw": (-45, 45), "pitch": (-30, 30), "roll": (-30, 30), "browser": (0, 1),
}  # fmt: skip
assert set(RANGES) == {field.name for field in fields(Settings)}


def parse_message(text: str | bytes) -> dict[str, Any]:
    """One control message: a JSON object of at most MESSAGE_MAX bytes, or a ValueError with a sentence."""
    if len(text) > MESSAGE_MAX:
        raise ValueError(f"A message of {len(text)} characters; the limit is {MESSAGE_MAX}.")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("A message that is not JSON.") from None
    if not isinstance(message, dict):
        raise ValueError("A message that is not a JSON object.")
    return message
