"""Is it still the same person, looking and speaking the same way? dlib's landmarks and its face network, on both films.

Nothing here took part in training: dlib's detector, its 68-point regression trees and its ResNet (128 numbers a face)
come from PyPI (``dlib-bin``, ``face_recognition_models``: the extra ``faces``). Checked on the originals of 20 people,
5,052 frames, all of which the detector found: eye, nose and mouth corners lie 1.7 pixels of 256 from MediaPipe's; mouth
openings correlate with MediaPipe's at 0.9 on the median clip, eye openings at 0.86. The face network puts other frames
of the same person at a distance of 0.31 (median) and two people at 0.86 (at least 0.62); its authors' limit for "the
same person" is 0.6.

The face is found on the original alone and both pictures are looked at through that box. Means of three boxes a pixel
or three apart steady the trees. Knows no codec.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import Clip, chosen

Array = NDArray[Any]

SHIFTS = ((0, 0), (3, 2), (-3, -2))  # pixels
INNER_LIPS = ((61, 67), (62, 66), (63, 65))  # upper and lower, in the 68-point numbering
EYES = ((36, 37, 38, 39, 40, 41), (42, 43, 44, 45, 46, 47))  # outer corner, two above, inner corner, two below
BRIDGE, CHIN = 27, 8
MIRRORED = [  # number of each landmark's counterpart
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
    41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
]  # fmt: skip
CLOSED = 0.7  # of the median opening of the original; with MediaPipe's eyelids 0.6 marks as many frames
IDENTITY_EVERY = 5  # of the frames that are looked at: the network is the slow part
SAME_PERSON = 0.6  # distance, by the network's authors


@dataclass(frozen=True)
class Track:
    """The landmarks of one film on the looked-at frames, float64 (N, 68, 2), pixels of a picture so wide."""

    landmarks: Array
    width: int

    @property
    def mouth(self) -> Array:
        """(N,): inner lip distance over face height."""
        gaps = [np.linalg.norm(self.landmarks[:, a] - self.landmarks[:, b], axis=1) for a, b in INNER_LIPS]
        height = np.linalg.norm(self.landmarks[:, BRIDGE] - self.landmarks[:, CHIN], axis=1)
        return np.asarray(np.mean(gaps, axis=0) / height)

    @property
    def eyes(self) -> Array:
        """(N,): lid distance over eye width, mean of both eyes (Soukupova and Cech's eye aspect ratio, 2016)."""
        p = self.landmarks

        def apart(a: int, b: int) -> Array:
            return np.asarray(np.linalg.norm(p[:, a] - p[:, b], axis=1))

        each = [
            (apart(up1, down1) + apart(up2, down2)) / (2 * apart(out, inner))
            for out, up1, up2, inner, down2, down1 in EYES
        ]
        return np.asarray(np.mean(each, axis=0))


def unavailable() -> str:
    """Why faces cannot be measured here, in one sentence; empty when they can."""
    missing = [name for name in ("dlib", "face_recognition_models") if importlib.util.find_spec(name) is None]
    if missing:
        return f"Face figures need {' and '.join(missing)}: pip install 'neuralcodec[faces]'."
    return ""


def tracks(original: Clip, decoded: Sequence[Array], *, every: int = 1) -> tuple[Track, Track] | None:
    """Landmarks of both films on every ``every``-th frame; None when no face is found in any of them."""
    before = _original(original.sha256, every, _Frames(chosen(original.frames, every)))
    return None if before is None else (before[0], _look(chosen(decoded, every), before[1]))


def identities(original: Clip, decoded: Sequence[Array], *, every: int = 1) -> tuple[Array, Array] | None:
    """The face network's numbers, (M, 128) each, on every ``every``-th frame; None when no face is found."""
    before = _original_identity(original.sha256, every, _Frames(chosen(original.frames, every)))
    return None if before is None else (before[0], _recognise(chosen(decoded, every), before[1]))


def landmark_figures(original: Clip, decoded: Sequence[Array], *, every: int = 1) -> dict[str, float]:
    """:func:`distances` of a clip; empty when it shows no face."""
    pair = tracks(original, decoded, every=every)
    return {} if pair is None else distances(*pair)


def identity_figures(original: Clip, decoded: Sequence[Array], *, every: int = 1) -> dict[str, float]:
    """identity_distance: mean, between the face network's numbers. same_person: share of frames under ``SAME_PERSON``.
    On every ``IDENTITY_EVERY``-th of the looked-at frames; empty when the clip shows no face."""
    pair = identities(original, decoded, every=every * IDENTITY_EVERY)
    if pair is None:
        return {}
    apart = np.linalg.norm(pair[0] - pair[1], axis=1)
    return {"identity_distance": float(apart.mean()), "same_person": float((apart < SAME_PERSON).mean())}


def distances(before: Track, after: Track) -> dict[str, float]:
    """Means over the frames of one clip.

    landmark_px: distance of the 68 landmarks, pixels of a picture 256 wide. mouth_error, mouth_range: mean difference
    of mouth openings, and the original's own range (1st to 99th percentile). closed, closed_shown: frames with closed
    eyes in the original, and how many of them show closed eyes; opened, opened_shown: the same for open eyes.
    """
    low, high = np.percentile(before.mouth, [1, 99])
    limit = CLOSED * np.median(before.eyes)
    was, shown = before.eyes < limit, after.eyes < limit
    return {
        "landmark_px": float(np.linalg.norm(before.landmarks - after.landmarks, axis=2).mean() * 256 / before.width),
        "mouth_error": float(np.abs(before.mouth - after.mouth).mean()),
        "mouth_range": float(high - low),
        "closed": int(was.sum()),
        "closed_shown": int((was & shown).sum()),
        "opened": int((~was).sum()),
        "opened_shown": int((~was & ~shown).sum()),
    }


def tremble(before: Track, after: Track) -> dict[str, float]:
    """Landmark jitter of both films on the quarter of the frames where the original's head is stillest: root mean
    square second difference in time, pixels of 256; 0 for a head that rests or moves evenly. For tracks of every frame.
    """
    if len(before.landmarks) < 4:
        return {}
    speed = np.linalg.norm(np.diff(before.landmarks, axis=0), axis=2).mean(axis=1)
    speed = np.maximum(speed[:-1], speed[1:])  # of each frame with a neighbour on both sides
    still = speed <= np.percentile(speed, 25)
    result = {}
    for name, track in (("tremble_original", before), ("tremble", after)):
        second = np.square(np.diff(track.landmarks, 2, axis=0)[still]).sum(axis=2)
        result[name] = float(np.sqrt(second.mean())) * 256 / track.width
    return result


def mouth_share(clips: Sequence[dict[str, Any]]) -> float:
    """Mean mouth error over the mean range of the originals: a ratio of means, because a clip of a closed mouth has no
    range of its own to divide by."""
    return float(np.mean([c["mouth_error"] for c in clips]) / np.mean([c["mouth_range"] for c in clips]))


def blink_agreement(clips: Sequence[dict[str, Any]]) -> float:
    """Mean of two shares over all frames of all clips: closed eyes shown closed, and open eyes shown open. A codec that
    never blinks, or always, gets 0.5."""
    shares = [sum(c[f"{s}_shown"] for c in clips) / max(sum(c[s] for c in clips), 1) for s in ("closed", "opened")]
    return float(np.mean(shares))


def centred_similarity(pairs: Sequence[tuple[Array, Array]]) -> list[float]:
    """Mean cosine of identities per clip, after the mean face of all clips' originals is taken off.

    Without that every two faces have a cosine of 0.9 in this network's numbers; with it two people have 0 on average.
    Needs several people. pairs: (original, decoded) of each clip, as :func:`identities` gives them.
    """
    centre = np.mean([before.mean(axis=0) for before, _ in pairs], axis=0)
    result = []
    for before, after in pairs:
        a, b = before - centre, after - centre
        cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        result.append(float(cosine.mean()))
    return result


class _Frames:
    """Frames as an argument of a cached function: all lists of frames under one clip hash are equal. The cache holds
    them too, so that they are only those looked at."""

    def __init__(self, frames: Sequence[Array]) -> None:
        self.frames = frames

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frames)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=8)
def _original(sha256: str, every: int, frames: _Frames) -> tuple[Track, list[Any]] | None:
    boxes = _boxes(frames.frames)
    return None if boxes is None else (_look(frames.frames, boxes), boxes)


@lru_cache(maxsize=8)
def _original_identity(sha256: str, every: int, frames: _Frames) -> tuple[Array, list[Any]] | None:
    boxes = _boxes(frames.frames)
    return None if boxes is None else (_recognise(frames.frames, boxes), boxes)


def _boxes(frames: Sequence[Array]) -> list[Any] | None:
    """The face on each frame; where none is found, that of the nearest frame with one."""
    found = [_detect(frame) for frame in frames]
    known = [index for index, box in enumerate(found) if box is not None]
    if not known:
        return None
    return [found[min(known, key=lambda k: abs(k - index))] for index in range(len(found))]


def _detect(frame: Array) -> Any:
    """The largest face as a dlib rectangle; None when there is none, even at twice the size."""
    detector, _, _ = _models()
    frame = np.ascontiguousarray(frame)
    faces = detector(frame, 0) or detector(frame, 1)
    return max(faces, key=lambda box: box.area(), default=None)


def _look(frames: Sequence[Array], boxes: Sequence[Any]) -> Track:
    import dlib

    _, predictor, _ = _models()
    landmarks = []
    for frame, box in zip(map(np.ascontiguousarray, frames), boxes, strict=True):
        shapes = [predictor(frame, dlib.translate_rect(box, dlib.point(*shift))) for shift in SHIFTS]
        landmarks.append(np.mean([[(p.x, p.y) for p in shape.parts()] for shape in shapes], axis=0))
    return Track(np.array(landmarks, float), frames[0].shape[1])


def look_twice(frames: Sequence[Array], boxes: Sequence[Any]) -> Track:
    """As they are and mirrored, the mean of both. The trees' error is hardly the same from both sides: movements of
    ten people, seen so by two such pairs of looks, correlate at 0.97, and at 0.95 by single ones."""
    import dlib

    plain = _look(frames, boxes)
    right = plain.width - 1
    mirrored = [dlib.rectangle(right - box.right(), box.top(), right - box.left(), box.bottom()) for box in boxes]
    other = _look([frame[:, ::-1] for frame in frames], mirrored).landmarks[:, MIRRORED]
    other[..., 0] = right - other[..., 0]
    return Track((plain.landmarks + other) / 2, plain.width)


def _recognise(frames: Sequence[Array], boxes: Sequence[Any]) -> Array:
    _, predictor, network = _models()
    pairs = zip(map(np.ascontiguousarray, frames), boxes, strict=True)
    return np.array([network.compute_face_descriptor(frame, predictor(frame, box)) for frame, box in pairs])


@cache
def _models() -> tuple[Any, Any, Any]:
    import dlib

    # The package's own __init__ needs an old setuptools; only its files are wanted.
    spec = importlib.util.find_spec("face_recognition_models")
    assert spec is not None and spec.submodule_search_locations, unavailable()
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return (
        dlib.get_frontal_face_detector(),
        dlib.shape_predictor(str(folder / "shape_predictor_68_face_landmarks.dat")),
        dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat")),
    )
