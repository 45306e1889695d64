"""Running totals of both ends, and the stopwatch that fills their stage times. Knows nothing of what is counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Stats:
    """What both ends count. ``provider``: what really runs the networks, empty until it is known."""

    provider: str = ""
    frames: int = 0
    references: int = 0  # pictures coded on their own
    updates: int = 0  # pictures predicted from those before them
    as_is_frames: int = 0  # that showed a coded picture instead of a rendered one
    stage_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def stage_ms(self) -> dict[str, float]:
        """Mean time of each stage, ms per frame."""
        return {stage: 1000 * spent / max(1, self.frames) for stage, spent in self.stage_seconds.items()}


@dataclass
class EncoderStats(Stats):
    """The sender's totals."""

    packets: int = 0
    bytes_reference: int = 0  # coded pictures
    bytes_motion: int = 0  # entropy-coded payloads
    bytes_overhead: int = 0  # headers of packets
    intra_frames: int = 0
    face_lost_frames: int = 0
    keypoint_error_px: float = 0.0  # mean over frames with motion: rms of sent to true keypoints, pixels of 256

    @property
    def bytes_total(self) -> int:
        return self.bytes_reference + self.bytes_motion + self.bytes_overhead


@dataclass
class DecoderStats(Stats):
    """The receiver's totals."""

    concealed_frames: int = 0
    lost_frames: int = 0  # sequence numbers that never came
    damaged_references: int = 0
    rejected_references: int = 0  # not signed by the trusted sender
    clamped_frames: int = 0  # shown with less of a view than was asked for: see Pack.view_range
    waiting_packets: int = 0  # motion not shown because its reference or the frame it continues was missing


@contextmanager
def timed(totals: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of a block to a stage's total seconds."""
    begin = perf_counter()
    yield
    totals[stage] = totals.get(stage, 0.0) + perf_counter() - begin
