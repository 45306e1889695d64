"""Where the face is in each frame of the camera or of a film, and how it stands. Knows no rate, no packets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from .cuts import Cuts, Shot, tile_of
from .face import CropFollower, Face, Square
from .inference import SURE, Inference, MotionEstimate
from .light import LightMeter
from .motion import Array


@dataclass(frozen=True)
class Sight:
    """What is seen in a frame. square: what is coded of it. moved: the square has jumped. estimate: the face in it, or
    None. shot: how many have begun before it, see `Cuts.follow`. light: on it, see `LightMeter`; what is seen and coded
    is the frame in the light of the first one."""

    square: Square
    moved: bool
    estimate: MotionEstimate | None
    shot: int = 0
    light: int = 0


class Watcher:
    """Looks at frame after frame. size: of the coded picture, pixels a side. timed: how long a stage takes. flash: see
    `Cuts`; None: shots are not told apart. light: whether it is followed."""

    def __init__(
        self,
        networks: Inference,
        follower: CropFollower,
        size: int,
        timed: Callable[[str], AbstractContextManager[None]],
        flash: float | None = None,
        light: bool = False,
    ) -> None:
        self._cuts = None if flash is None else Cuts(networks, flash, timed)
        self._meter = LightMeter() if light else None
        self._networks, self._follower, self._size, self._timed = networks, follower, size, timed
        self._camera: tuple[int, int] | None = None
        self._face: Face | None = None  # where it was last seen, source pixels

    @property
    def settling(self) -> bool:
        """Whether the camera seems to be setting its exposure still, as far as light is followed."""
        return self._meter is not None and self._meter.settling

    def begin(self) -> None:
        """Nothing has been coded yet: the light is that of the last frame."""
        if self._meter is not None:
            self._meter.begin()

    def see(self, picture: Array, seconds: float) -> tuple[Sight, Array]:
        """Of uint8 RGB (H, W, 3), any size; and what is coded of it, uint8 (size, size, 3)."""
        camera = (picture.shape[1], picture.shape[0])
        if camera != self._camera:
            self._camera, self._face = camera, None
            if self._cuts is not None:
                self._cuts.forget()
            if self._meter is not None:
                self._meter.forget()
        light = 0
        if self._meter is not None:
            with self._timed("light"):
                light = self._meter.follow(picture, seconds)
        with self._timed("face"):
            face = self._face or self._find(picture)
            square = self._follower.update(camera, face, seconds)
            tile = tile_of(picture, square, self._size, light)
        with self._timed("motion"):
            estimate = self._look(tile, square, face)
        if estimate is None and self._face is not None:  # lost where it was: look over the whole picture once
            self._face = None
            with self._timed("face"):
                face = self._find(picture)
            with self._timed("motion"):
                estimate = self._look(tile, square, face)
        self._face = Face.from_box(square, estimate.box) if estimate else None
        moved, shot = self._follower.moved, 0
        if self._cuts is not None:
            shot = self._cuts.follow(Shot(picture, tile, square, estimate, seconds, light), moved)
        return Sight(square, moved, estimate, shot, light), tile

    def _find(self, picture: Array) -> Face | None:
        # a fixed square is about the person in it, whoever else is in the picture
        faces = self._networks.detector.detect(picture, near=self._follower.fixed)
        return faces[0] if faces else None

    def _look(self, tile: Array, square: Square, face: Face | None) -> MotionEstimate | None:
        if face is None:
            return None
        estimate = self._networks.motion(tile, face.box_in(square))
        return estimate if estimate.confidence >= SURE else None
