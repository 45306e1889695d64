"""The network calls, on numpy: motion of a picture, features of a reference, a rendered frame. Tensor names end here.

Knows no packets and no frames per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .errors import InferenceError
from .face import HEAD_SCALE, HEAD_Y, Face, FaceDetector, Square
from .motion import Array, MotionParams
from .pack import Pack
from .runtime.session import Session, open_session

LOOKS = 3  # times the motion network looks at a reference, each look centring the next


@dataclass(frozen=True)
class MotionEstimate:
    """What the motion network saw: motion, the identity's canonical keypoints (K, 3), how sure it is (0..1)."""

    motion: MotionParams
    canonical: Array
    confidence: float

    @classmethod
    def from_outputs(cls, out: Mapping[str, Array]) -> MotionEstimate:
        """The first picture of a motion graph's outputs."""
        scale = float(out["scale"][0, 0])
        if not np.isfinite(scale) or scale <= 0 or not np.isfinite(out["delta"]).all():
            raise InferenceError(
                "The motion network gave NaN or a face of no size; check the pack with 'neuralcodec doctor'."
            )
        motion = MotionParams.from_matrix(out["rotation"][0], out["translation"][0], scale, out["delta"][0])
        return cls(motion, out["canonical"][0], float(out["confidence"][0, 0]))

    @property
    def box(self) -> Array:
        """Where to look in the next frame, float32 (3,): centre x, y and half side, in coded-picture units."""
        return np.array([*self.motion.translation[:2], self.motion.scale], np.float32)

    @property
    def keypoints(self) -> Array:
        """Its keypoints in the picture, float32 (K, 3)."""
        return self.motion.keypoints(self.canonical)

    def placed(self, here: Square, there: Square) -> MotionEstimate:
        """The same face in the coordinates of another square of the source picture."""
        if here == there:
            return self
        x, y, half = Face.from_box(here, self.box).box_in(there).tolist()
        depth = self.motion.translation[2] * np.float32(here.side / there.side)
        place = np.array([x, y, depth], np.float32)
        return replace(self, motion=replace(self.motion, translation=place, scale=half))

    def relative_to(self, canonical: Array) -> MotionParams:
        """The same keypoints expressed on another identity estimate, so that its error is not seen twice."""
        m = self.motion
        delta = (self.canonical + m.delta - canonical).astype(np.float32)
        return MotionParams(m.yaw, m.pitch, m.roll, m.translation, m.scale, delta)


class ReferenceFeatures:
    """A held reference picture, uint8 RGB (S, S, 3) as decoded, and what the networks see in it. Each is computed when
    first asked for: a picture that is shown as it is, or never, costs nothing."""

    def __init__(self, picture: Array, networks: Inference) -> None:
        self.picture = picture
        self._networks = networks

    @cached_property
    def estimate(self) -> MotionEstimate:
        """Its own keypoints and pose."""
        return self._networks.estimate(self.picture)

    @cached_property
    def feeds(self) -> Any:
        """Placed inputs of the renderer."""
        return self._networks.feeds(self.picture, self.estimate)

    @property
    def canonical(self) -> Array:
        return self.estimate.canonical


class Inference:
    """A pack's networks on one device; graphs are opened when first needed."""

    def __init__(self, pack: Pack, *, device: str = "auto", threads: int | None = None) -> None:
        self.pack, self._device, self._threads = pack, device, threads

    def _open(self, name: str) -> Session:
        return open_session(self.pack.graph(name), device=self._device, threads=self._threads)

    @cached_property
    def _motion(self) -> Session:
        return self._open("motion")

    @cached_property
    def _reference(self) -> Session:
        return self._open("reference")

    @cached_property
    def _render(self) -> Session:
        return self._open("render")

    @cached_property
    def detector(self) -> FaceDetector:
        # tiny and called rarely: the copy to a GPU would cost more than the network
        return FaceDetector(open_session(self.pack.graph("detector"), device="cpu", threads=1))

    @property
    def provider(self) -> str:
        """What really runs the networks."""
        return self._motion.provider

    def motion(self, picture: Array, box: Array) -> MotionEstimate:
        """picture: uint8 RGB (S, S, 3); box: float32 (3,), see `MotionEstimate.box`."""
        return self._look(as_tensor(picture), box)

    def _look(self, image: Array, box: Array) -> MotionEstimate:
        feeds = {"image": image, "box": np.asarray(box, np.float32)[None]}
        return MotionEstimate.from_outputs(self._motion.run({name: feeds[name] for name in self._motion.input_shapes}))

    def reference(self, picture: Array) -> ReferenceFeatures:
        """A decoded reference picture, uint8 RGB (S, S, 3). Both ends run this on the same pixels."""
        return ReferenceFeatures(picture, self)

    def estimate(self, picture: Array) -> MotionEstimate:
        """The face of a picture of which nothing is known yet."""
        image, side = as_tensor(picture), picture.shape[0]
        faces = self.detector.detect(picture)
        box = faces[0].box_in(Square(0, 0, side)) if faces else np.array([0, HEAD_Y, HEAD_SCALE], np.float32)
        for _ in range(LOOKS):
            estimate = self._look(image, box)
            box = estimate.box
        return estimate

    def feeds(self, picture: Array, estimate: MotionEstimate) -> Any:
        """What the renderer takes from a reference, placed where it wants it."""
        image = as_tensor(picture)
        shared = {
            "image": image,
            **self._reference.run({"image": image}),
            "source_keypoints": estimate.keypoints[None],
            "source_rotation": estimate.motion.rotation[None],
        }
        wanted = {name: value for name, value in shared.items() if name in self._render.input_shapes}
        return self._render.place(wanted)

    def render(self, reference: ReferenceFeatures, motion: MotionParams) -> Array:
        """The reference's person in another motion: uint8 RGB (S, S, 3)."""
        driving = {
            "driving_keypoints": motion.keypoints(reference.canonical)[None],
            "driving_rotation": motion.rotation[None],
        }
        picture = self._render.run({**reference.feeds, **driving})["picture"][0]
        if np.isnan(picture[:, ::16, ::16]).any():
            raise InferenceError("The renderer gave NaN; use device='cpu' or a pack with fp32 graphs.")
        return np.ascontiguousarray((picture * 255 + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def as_tensor(picture: Array) -> Array:
    """uint8 RGB (S, S, 3) to float32 (1, 3, S, S) in 0..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None]).astype(np.float32) * np.float32(1 / 255)
