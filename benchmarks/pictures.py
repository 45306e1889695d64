"""Stills and a short film side by side at equal rate, decoded from the streams that the cache holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks import comparison, page, report
from benchmarks.cache import Cache
from benchmarks.clips import FPS
from benchmarks.running import Job

Array = NDArray[Any]

STILLS = 6  # clips
FILM_CLIPS, FILM_FRAMES = 3, 75
LINE = 4  # grey pixels between pictures


def side_by_side(
    result: Mapping[str, Any], jobs: Sequence[Job], cache: Cache, codecs: Sequence[str]
) -> tuple[list[tuple[str, bytes]], bytes]:
    """(caption, PNG) of the middle frame, worst clips first and the best one last, and an MP4 of some of them.

    Every codec's best affordable point at our rate; its cheapest where it has none, and the caption tells.
    """
    settings = {(setting.footage.facts.sha256, setting.codec, setting.name): setting for setting, _ in jobs}
    ordered = page.worst_first(result)
    chosen = [*ordered[: STILLS - 1], *ordered[-1:]] if len(ordered) >= STILLS else ordered
    filmed = [*chosen[: FILM_CLIPS - 1], *chosen[-1:]] if len(chosen) >= FILM_CLIPS else chosen
    stills, film = [], []
    ours = {p["sha256"]: p for p in comparison.at_target(result["points"], codecs[0], result["target"])}
    for sha in chosen:
        if sha not in ours:
            continue
        rate = ours[sha]["kbps"]
        others = [comparison.nearest(result["points"], codec, sha, rate * 1.02) for codec in codecs[1:]]
        shown = [ours[sha], *(point for point in others if point is not None)]
        found = [settings[(sha, p["codec"], p["name"])] for p in shown]
        original = found[0].footage.read().frames
        films = [original, *(setting.decode(cache) for setting in found)]
        middle = len(original) // 2
        caption = "; ".join(["original", *(f"{p['codec']} {p['kbps']:.1f} kbit/s ({p['name']})" for p in shown)])
        stills.append((f"{ours[sha]['clip']}: {caption}", report.png(_row([frames[middle] for frames in films]))))
        if sha in filmed:
            start = max(0, middle - FILM_FRAMES // 2)
            film += [_row(list(group)) for group in zip(*(f[start : start + FILM_FRAMES] for f in films), strict=True)]
    return stills, _mp4(film)


def _row(frames: Sequence[Array]) -> Array:
    """Pictures of one height side by side, even width."""
    line = np.full((frames[0].shape[0], LINE, 3), 128, np.uint8)
    parts = [part for frame in frames for part in (frame, line)][:-1]
    return np.concatenate(parts, axis=1)


def _mp4(frames: Sequence[Array]) -> bytes:
    if not frames:
        return b""
    data = BytesIO()
    with av.open(data, "w", format="mp4") as container:
        options = {"crf": "22", "preset": "medium"}
        stream: Any = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width = (side - side % 2 for side in frames[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            whole = np.ascontiguousarray(frame[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(whole, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()
