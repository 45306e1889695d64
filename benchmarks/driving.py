"""Motion that is changed on its way, through the whole codec: another person's picture driven, and trembling calmed.

Measures for benchmarks.free_view; knows encoder and decoder, and judges with dlib (benchmarks.faces, benchmarks.pose).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import neuralcodec as nc
from benchmarks import clips, faces, pose, report
from benchmarks.clips import Array
from neuralcodec.avatar import Transfer
from neuralcodec.quality import psnr

STEP = 4  # all frames are sent and shown, every fourth is looked at
FACE = (*range(17, 27), *range(36, 48), *range(48, 68))  # brows, eyes, mouth in the 68-point numbering
# How deep each of them lies in the mean head, in its units: fitted as pose.HEAD was.
DEPTH = np.array([
    0.07, -0.06, -0.17, -0.26, -0.33, -0.3, -0.22, -0.11, 0.02, 0.16, -0.01, -0.07, -0.09, -0.07, -0.08, -0.07, -0.04,
    -0.04, -0.01, 0.07, 0.0, -0.03, -0.07, -0.29, -0.41, -0.43, -0.4, -0.28, -0.04, -0.19, -0.3, -0.33, -0.31, -0.21,
    -0.11, -0.37, -0.39, -0.37, -0.08, -0.31, -0.34, -0.32,
])  # fmt: skip
KBPS = 4.0  # the default target
OWN = "own picture"
SMOOTH_FRAMES = 50


def transfer(
    footage: Sequence[clips.Clip], pack: nc.Pack, threads: int, pictures: Path | None, bar: Any
) -> dict[str, Any]:
    """Each clip drives the first picture of the next; pooled over clips, for both ways of transfer. And its own first
    picture, for scale: nobody else's face is in the way there, and what is missing to 1 is the codec's and dlib's.
    dlib looks at every picture and at its mirror image: by single looks the three come out 0.01 to 0.02 lower."""
    result: dict[str, Any] = {}
    kinds: dict[str, tuple[Transfer, int]] = {
        "relative": ("relative", 1),
        "absolute": ("absolute", 1),
        OWN: ("absolute", 0),
    }
    for name, (kind, ahead) in kinds.items():
        rows, drivers, driven = [], [], []
        for index, clip in enumerate(bar(footage, f"transfer, {name}")):
            other = footage[(index + ahead) % len(footage)]
            row = _one(clip, other, kind, pack, threads, pictures if name != OWN else None)
            if row is not None:
                rows.append(row)
                drivers.append(row.pop("driver_motion"))
                driven.append(row.pop("avatar_motion"))
        result[name] = {
            "pictures": sum(row["pictures"] for row in rows),
            "expression": correlation(np.concatenate(drivers), np.concatenate(driven)),
            "expression_median_clip": float(np.median([row["expression"] for row in rows])),
            "mouth": float(np.median([row["mouth"] for row in rows])),
            "identity_distance": float(np.mean([row["identity_distance"] for row in rows])),
            "identity_kept": float(np.mean([row["identity_kept"] for row in rows])),
            "angle_error": float(np.mean([row["angle_error"] for row in rows])),
            "clips": rows,
        }
    return result


def _one(
    clip: clips.Clip, other: clips.Clip, kind: Transfer, pack: nc.Pack, threads: int, pictures: Path | None
) -> dict[str, Any] | None:
    avatar = nc.Avatar(other.frames[0], "footage kept for evaluation, not shown to anybody", kind)
    encoder = nc.Encoder(KBPS, pack=pack, device="cpu", threads=threads, avatar=avatar)
    shown = _decoded(encoder, clip.frames, nc.Decoder(pack=pack, device="cpu", threads=threads))[::STEP]
    frames = clip.frames[::STEP]
    pictures_shown = [frame.image for frame in shown]
    boxes = [faces._boxes(films) for films in (other.frames[:1], frames, pictures_shown)]
    if boxes[0] is None or boxes[1] is None or boxes[2] is None or len(shown) != len(frames):
        return None
    before, after = faces.look_twice(frames, boxes[1]), faces.look_twice(pictures_shown, boxes[2])
    if pictures is not None:
        chosen = np.linspace(0, len(frames) - 1, 6).astype(int)
        rows = [[other.frames[0], *(frames[i] for i in chosen)], [other.frames[0], *(shown[i].image for i in chosen)]]
        report.sheet(pictures / f"{kind}-{clip.name}.png", rows)
    own = faces._recognise(other.frames[:1], boxes[0])
    every = faces.IDENTITY_EVERY
    distance = np.linalg.norm(faces._recognise(pictures_shown[::every], boxes[2][::every]) - own, axis=1)
    turns = [[pose.rotation(points) for points in track.landmarks] for track in (before, after)]
    if kind == "relative":  # since the first frame
        turns = [[of[0].T @ turn for turn in of] for of in turns]
    moved = [_movement(track.landmarks) for track in (before, after)]
    return {
        "driver": clip.name,
        "avatar": other.name,
        "pictures": len(frames),
        "expression": correlation(*moved),
        "mouth": float(np.corrcoef(before.mouth, after.mouth)[0, 1]),
        "identity_distance": float(distance.mean()),
        "identity_kept": float((distance < faces.SAME_PERSON).mean()),
        "angle_error": float(np.mean([pose.angle(a.T @ b) for a, b in zip(*turns, strict=True)])),
        "driver_motion": moved[0],
        "avatar_motion": moved[1],
    }


def _movement(landmarks: Array) -> Array:
    """(N, 42, 2): what brows, eyes and mouth do: landmarks seen from the front as far as the mean head tells, less
    their mean over the clip, in units of the head."""
    heads = np.array(list(pose.HEAD.values()))
    fronts = []
    for points in landmarks:
        turn = pose.rotation(points)
        at = (heads @ turn)[:, :2]
        rigid = points[list(pose.HEAD)]
        spread = at - at.mean(0)
        scale = float((spread * (rigid - rigid.mean(0))).sum() / (spread**2).sum())
        place = rigid.mean(0) - scale * at.mean(0)
        flat = (points[list(FACE)] - place) / scale
        fronts.append(np.linalg.solve(turn[:2, :2].T, (flat - DEPTH[:, None] * turn[2, :2]).T).T)
    return np.asarray(fronts - np.mean(fronts, axis=0))


def correlation(a: Array, b: Array) -> float:
    """Of two movements (N, 42, 2): one number over all of it."""
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def smooth(footage: Sequence[clips.Clip], pack: nc.Pack, threads: int, bar: Any) -> dict[str, float]:
    """Of every second clip: tremble (rms second difference of the shown keypoints, pixels of 256, on the half of the
    frames that moves less) and PSNR, of the same streams with the filter off and on."""
    values: dict[str, list[float]] = {}
    for clip in bar(footage[::2], "smooth"):
        frames = clip.frames[:SMOOTH_FRAMES]
        encoder = nc.Encoder(KBPS, pack=pack, device="cpu", threads=threads, crop="none")
        packets = [bytes(packet) for pts, frame in enumerate(frames) for packet in encoder.encode(frame, pts)]
        for name, on in (("off", False), ("on", True)):
            decoder = nc.Decoder(pack=pack, device="cpu", threads=threads, smooth=on)
            shown = [frame for packet in packets for frame in decoder.decode(packet)]
            values.setdefault(f"tremble_{name}", []).append(_tremble(shown, decoder))
            values.setdefault(f"psnr_{name}", []).append(
                float(np.mean([psnr(frames[frame.pts], frame.image) for frame in shown]))
            )
    return {name: float(np.mean(found)) for name, found in values.items()}


def _tremble(shown: Sequence[nc.DecodedFrame], decoder: nc.Decoder) -> float:
    held = decoder._pictures.get(shown[-1].reference)
    assert held is not None
    canonical = held.features.canonical
    points = np.array([frame.shown.keypoints(canonical)[:, :2] for frame in shown]) * 128
    speed = np.linalg.norm(points[2:] - points[:-2], axis=2).mean(axis=1)
    second = np.sqrt((np.diff(points, 2, axis=0) ** 2).sum(axis=2).mean(axis=1))
    triples = zip(shown, shown[1:], shown[2:], strict=False)
    same = np.array([a.reference == c.reference and not (a.as_is or b.as_is or c.as_is) for a, b, c in triples])
    return float(second[same & (speed <= np.median(speed))].mean())


def _decoded(encoder: nc.Encoder, frames: Sequence[Array], decoder: nc.Decoder) -> list[nc.DecodedFrame]:
    return [
        frame
        for pts, picture in enumerate(frames)
        for packet in encoder.encode(picture, pts)
        for frame in decoder.decode(bytes(packet))
    ]
