"""The network calls, on numpy: motion of a picture, features of a reference, a rendered frame. Tensor names end here.

Knows no packets and no frames per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .errors import InferenceError
from .face import HEAD_SCALE, HEAD_Y, FaceDetector, Square, box_of, placed
from .motion import Array, MotionParams
from .pack import Pack
from .runtime.session import Session, check_asked, cores, open_session
from .scene import Pyramid, register

SIDE_BY_SIDE = 8  # frames drawn at the same time, at most: as many as a packet of a file has

# Times the motion network looks at a reference, each look centring the next: twice, and once more where the second look
# still moved the box by more than SETTLED (half a pixel of 256). Measured on 100 coded pictures: keypoints 0.09 px from
# where eight looks end, on average.
LOOKS = 3
SETTLED = 0.005
SURE = 0.5  # confidence below which the motion network does not see a face


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
        if scale <= 0 or not all(np.isfinite(values[0]).all() for values in out.values()):
            raise InferenceError(
                "The motion network gave NaN or a face of no size; check the pack with 'neuralcodec doctor'."
            )
        motion = MotionParams.from_matrix(out["rotation"][0], out["translation"][0], scale, out["delta"][0])
        return cls(motion, out["canonical"][0], float(out["confidence"][0, 0]))

    @property
    def box(self) -> Array:
        """Where to look in the next frame, float32 (3,): centre x, y and half side, in coded-picture units."""
        return box_of(self.motion)

    @cached_property
    def keypoints(self) -> Array:
        """Its keypoints in the picture, float32 (K, 3)."""
        return self.motion.keypoints(self.canonical)

    def placed(self, here: Square, there: Square) -> MotionEstimate:
        """The same face in the coordinates of another square of the source picture."""
        return replace(self, motion=placed(self.motion, here, there))

    def relative_to(self, canonical: Array) -> MotionParams:
        """The same keypoints expressed on another identity estimate, so that its error is not seen twice."""
        return self.motion.told_on(canonical, self.canonical)


class ReferenceFeatures:
    """A held reference picture, uint8 RGB (S, S, 3) as decoded, and what the networks see in it. Each is computed when
    first asked for: a picture that is shown as it is, or never, costs nothing. known: its face, where that is told."""

    def __init__(self, picture: Array, networks: Inference, known: MotionEstimate | None = None) -> None:
        self.picture = picture
        self._networks, self._known = networks, known

    def recut(self, picture: Array, known: MotionEstimate) -> ReferenceFeatures:
        """Another cut of it, and the face in that."""
        return ReferenceFeatures(picture, self._networks, known)

    @cached_property
    def estimate(self) -> MotionEstimate:
        """Its own keypoints and pose."""
        return self._known or self._networks.estimate(self.picture)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """Inputs of the renderer in host memory, (1, ...) each; batches are made of these."""
        return self._networks.features(self.picture, self.estimate)

    @cached_property
    def feeds(self) -> Any:
        """The same, placed where the renderer wants them."""
        return self._networks.place(self.arrays)

    @cached_property
    def grey(self) -> Pyramid:
        """What the sender compares later pictures with to find how the scene moved."""
        return Pyramid(self.picture)

    @property
    def canonical(self) -> Array:
        return self.estimate.canonical


class Inference:
    """A pack's networks on one device; graphs are opened when first needed."""

    def __init__(self, pack: Pack, *, device: str = "auto", threads: int | None = None) -> None:
        check_asked(device, threads)  # and not with the first frame
        self.pack, self._device, self._threads = pack, device, threads
        self._together: tuple[tuple[ReferenceFeatures, ...], Any] = ((), None)  # of the last batch

    def _open(self, name: str) -> Session:
        exact = name == "motion"  # both ends estimate the motion of a reference, whatever they run on
        return open_session(self.pack.graph(name), device=self._device, threads=self._threads, exact=exact)

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
        """The face of a picture of which nothing is known yet. Depends on the picture alone: both ends run it."""
        image, whole = as_tensor(picture), Square(0, 0, picture.shape[0])
        # One look of the detector over the whole square does; the second, closer one only where that finds nobody.
        faces = self.detector.detect(picture, whole) or self.detector.detect(picture)
        box = faces[0].box_in(whole) if faces else np.array([0, HEAD_Y, HEAD_SCALE], np.float32)
        estimate = self._look(image, box)
        for _ in range(LOOKS - 1):
            box, estimate = estimate.box, self._look(image, estimate.box)
            if np.abs(estimate.box - box).max() <= SETTLED:
                break
        return estimate

    def features(self, picture: Array, estimate: MotionEstimate) -> dict[str, Array]:
        """What the renderer takes from a reference."""
        image = as_tensor(picture)
        shared = {
            "image": image,
            **self._reference.run({"image": image}),
            "source_keypoints": estimate.keypoints[None],
            "source_rotation": estimate.motion.rotation[None],
        }
        return {name: value for name, value in shared.items() if name in self._render.input_shapes}

    def scene(
        self, reference: ReferenceFeatures, picture: Array, face: MotionEstimate, start: Array | None = None
    ) -> Array:
        """How the scene moved from ``reference`` to ``picture``, uint8 RGB (S, S, 3): float32 (M, 2), M = 0 for a pack
        without scene. face: of ``picture``. start: of the frame before, from the same reference, as the receiver has
        it."""
        nodes = self.pack.scene
        if not nodes:
            return np.zeros((0, 2), np.float32)
        return register(reference.grey, Pyramid(picture), face.box.tolist(), start, nodes)

    def place(self, features: dict[str, Array]) -> Any:
        """Features where the renderer wants them: a GPU keeps them for every frame of that reference."""
        return self._render.place(features)

    def render(self, reference: ReferenceFeatures, motion: MotionParams) -> Array:
        """The reference's person in another motion: uint8 RGB (S, S, 3)."""
        return self._drawn(self._render, reference, motion)

    def _drawn(self, session: Session, reference: ReferenceFeatures, motion: MotionParams) -> Array:
        return _as_picture(session.run({**reference.feeds, **self.driving([reference], [motion])})["picture"][0])

    def render_each(self, frames: Sequence[tuple[ReferenceFeatures, MotionParams]]) -> list[Array]:
        """Several frames, in order, as `render` makes them. A CPU draws them side by side, a thread for each: frames
        wait for nothing, while threads that share one wait for each other after every layer."""
        if len(frames) < 2 or self._side_by_side is None:
            return [self.render(*frame) for frame in frames]
        session, pool = self._side_by_side
        for reference, _ in frames:
            reference.feeds  # noqa: B018  computed once, before threads ask for it
        return list(pool.map(lambda frame: self._drawn(session, *frame), frames))

    @cached_property
    def _side_by_side(self) -> tuple[Session, ThreadPoolExecutor] | None:
        """The renderer on one thread, and the threads that run it; None where one core or a GPU draws."""
        threads = min(self._threads or cores(), SIDE_BY_SIDE)
        if threads < 2 or self._render.provider != "CPUExecutionProvider":
            return None
        session = open_session(self.pack.graph("render"), device="cpu", threads=1)
        return session, ThreadPoolExecutor(threads, "neuralcodec-render")

    def render_many(self, references: Sequence[ReferenceFeatures], motions: Sequence[MotionParams]) -> list[Array]:
        """One frame of each of several people in one call of the network: uint8 RGB (S, S, 3) each.

        The references' features are joined and placed once for as long as the same people come in the same order.
        """
        if len(references) != len(motions) or not references:
            raise ValueError(f"{len(references)} references and {len(motions)} motions were given; one each is needed.")
        held, placed = self._together
        if len(held) != len(references) or any(a is not b for a, b in zip(held, references, strict=True)):
            names = references[0].arrays
            placed = self._render.place({n: np.concatenate([r.arrays[n] for r in references]) for n in names})
            self._together = tuple(references), placed
        driving = self.driving(references, motions)
        return [_as_picture(picture) for picture in self._render.run({**placed, **driving})["picture"]]

    def driving(self, references: Sequence[ReferenceFeatures], motions: Sequence[MotionParams]) -> dict[str, Array]:
        """Inputs of the renderer that change with every frame, (B, ...) each."""
        keypoints = [m.keypoints(r.canonical) for m, r in zip(motions, references, strict=True)]
        inputs = {"driving_keypoints": np.stack(keypoints), "driving_rotation": np.stack([m.rotation for m in motions])}
        if "driving_scene" in self._render.input_shapes:
            still = np.zeros((int(self._render.input_shapes["driving_scene"][1]), 2), np.float32)
            inputs["driving_scene"] = np.stack([m.scene if len(m.scene) else still for m in motions])
        return inputs

    def warm_up(self, batch: int = 1) -> None:
        """Run every network once on black pictures, ``batch`` of them in the renderer: opening a session, choosing
        kernels, building an engine or recording a CUDA graph then does not fall on the first frames."""
        black = self.reference(np.zeros((self.pack.size, self.pack.size, 3), np.uint8))
        self.render(black, black.estimate.motion)
        if batch > 1:
            self.render_many([black] * batch, [black.estimate.motion] * batch)


def _as_picture(picture: Array) -> Array:
    """float32 (3, S, S) in 0..1 to uint8 RGB (S, S, 3)."""
    if np.isnan(picture.min()):
        raise InferenceError("The renderer gave NaN; use device='cpu' or a pack with fp32 graphs.")
    return np.ascontiguousarray((picture * 255 + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def as_tensor(picture: Array) -> Array:
    """uint8 RGB (S, S, 3) to float32 (1, 3, S, S) in 0..1."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None]).astype(np.float32) * np.float32(1 / 255)
