"""One direction of a bad network, simulated: loss, delay, and a bottleneck with a queue. Time is an argument."""

from __future__ import annotations

import random
from collections import deque

HEADERS = 28  # bytes of IPv4 and UDP around every datagram: they take their turn at the bottleneck too
QUEUE_SECONDS = 1.0  # a router drops what would wait longer than this


class Link:
    """Datagrams in, the same datagrams out, later or never, in order.

    loss: share of datagrams lost at random. delay: seconds. kbps: of the bottleneck, headers included; 0 is unlimited.
    All three may be assigned at any time and hold for what is sent afterwards.
    """

    def __init__(self, *, loss: float = 0.0, delay: float = 0.0, kbps: float = 0.0, seed: int = 0) -> None:
        self.loss, self.delay, self.kbps = loss, delay, kbps
        self.sent = self.lost = self.dropped = 0  # datagrams; lost at random, dropped because the queue was full
        self.bytes = 0  # of payload sent, lost ones included: the sender has paid for them
        self._random = random.Random(seed)
        self._free_at = 0.0  # when the bottleneck has passed on all that waits before it
        self._under_way: deque[tuple[float, bytes]] = deque()

    def send(self, data: bytes, now: float) -> None:
        self.sent += 1
        self.bytes += len(data)
        leaves = max(now, self._free_at)
        if self.kbps:
            if leaves - now > QUEUE_SECONDS:
                self.dropped += 1
                return
            leaves += (len(data) + HEADERS) / (self.kbps * 125)
            self._free_at = leaves
        if self._random.random() < self.loss:  # after the bottleneck: a lost datagram has used its share of it
            self.lost += 1
            return
        due = leaves + self.delay
        if self._under_way:  # the delay was turned down: nothing overtakes
            due = max(due, self._under_way[-1][0])
        self._under_way.append((due, data))

    def receive(self, now: float) -> list[bytes]:
        """Datagrams that have arrived by ``now``."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            arrived.append(self._under_way.popleft()[1])
        return arrived

    def waiting(self, now: float) -> int:
        """Datagrams that have arrived by ``now`` and have not been taken."""
        return sum(due <= now for due, _ in self._under_way)

    def next_arrival(self) -> float | None:
        """When the next datagram arrives, None when nothing is under way."""
        return self._under_way[0][0] if self._under_way else None
