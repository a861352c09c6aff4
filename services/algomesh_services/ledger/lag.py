"""How far the table of runs is behind the stream of events: pure, time is an argument.

Each message says in its reply subject when the server took it, and how many came after it:
`$JS.ACK.<stream>.<consumer>.<delivered>.<number>.<number>.<nanoseconds since the epoch>.<pending>`, with two more
tokens behind `ACK` where the server has a domain (ADR-15 of NATS).
"""

from collections.abc import Sequence
from typing import NamedTuple

from algomesh_broker.connection import Message


class Delivery(NamedTuple):
    """When the stream took a message, in seconds since the epoch, and how many waited behind it."""

    at: float
    pending: int


class Lag:
    """What of the stream is not in the table, as far as the ledger knows."""

    def __init__(self) -> None:
        self._oldest_at = 0.0
        self._in_hand = self._behind = 0

    def took(self, messages: Sequence[Message]) -> None:
        """These are to be written now."""
        first, last = (read_delivery(message.reply) for message in (messages[0], messages[-1]))
        self._oldest_at = first.at if first is not None else 0.0
        self._in_hand, self._behind = len(messages), last.pending if last is not None else 0

    def wrote(self, now: float) -> float:
        """They are in the table; returns how many seconds that took the oldest of them."""
        lag_s = self.lag_s(now)
        self._oldest_at, self._in_hand = 0.0, 0
        return lag_s

    def lag_s(self, now: float) -> float:
        """How long the oldest event in hand has waited; 0 when there is none."""
        return max(0.0, now - self._oldest_at) if self._oldest_at else 0.0

    @property
    def waiting(self) -> int:
        """Messages that are not in the table."""
        return self._in_hand + self._behind


def read_delivery(reply: str) -> Delivery | None:
    """What a message's reply subject says of its delivery; None when it says nothing."""
    tokens = reply.split(".")
    last = 8 if len(tokens) == 9 else 10
    try:
        return Delivery(int(tokens[last - 1]) / 1e9, int(tokens[last]))
    except (IndexError, ValueError):
        return None
