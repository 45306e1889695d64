"""Real material that several test files share: the astronaut clip, coded once with the bundled pack."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.motion import Array
from neuralcodec.pack import Pack
from neuralcodec.quantizer import MotionTables

ROOT = Path(__file__).parent.parent
FOOTAGE = Path(os.environ.get("NEURALCODEC_DATA", ROOT.parent / "shared" / "data"))
VECTORS = Path(__file__).parent / "vectors"
FRAMES = 20
NODES = 3  # a side, of the scene that is laid around the frozen tracks


@pytest.fixture(scope="session")
def portrait_clip() -> list[Array]:
    """uint8 RGB (256, 256, 3) frames of a public-domain portrait that turns and speaks."""
    from neuralcodec.demo import moving_portrait

    return list(islice(moving_portrait(), FRAMES))


@pytest.fixture(scope="session")
def coded(portrait_clip: list[Array]) -> tuple[nc.Encoder, list[list[Any]]]:
    """The encoder after the clip, and its packets frame by frame."""
    encoder = nc.Encoder(target_kbps=6, device="cpu", threads=1)
    return encoder, [encoder.encode(image, pts) for pts, image in enumerate(portrait_clip)]


@pytest.fixture(scope="session")
def scene_tracks() -> dict[str, Array]:
    """The frozen tracks with a scene that wanders and begins anew every 30 frames: flat motion (150, 7 + 3K + 2M)."""
    dice, tracks = np.random.default_rng(5), {}
    for name in ("track_a", "track_b"):
        flat = np.load(VECTORS / f"{name}.npz")["flat"][:150].astype(np.float64)
        scene = dice.normal(0, 0.004, (len(flat), 2 * NODES**2)).cumsum(axis=0)
        start = np.arange(len(flat)) // 30 * 30
        tracks[name] = np.hstack([flat, scene - scene[start]])
    return tracks


@pytest.fixture(scope="session")
def scene_tables(scene_tracks: dict[str, Array]) -> dict[str, Any]:
    """Content of a tables.json with a scene, fitted to these tracks."""
    from export.fit_tables import Track, fit_tables

    tracks = []
    for name, flat in scene_tracks.items():
        canonical = np.load(VECTORS / f"{name}.npz")["canonical"].astype(np.float64)
        tracks.append(Track(flat, canonical, np.arange(len(flat)) % 30 == 0))
    return fit_tables(tracks, size=20)


@pytest.fixture(scope="session")
def scene_pack(scene_tables: dict[str, Any]) -> Pack:
    """The bundled pack with those tables in place of its own, for ends that follow bits and render nothing."""
    pack = replace(nc.load_pack())
    vars(pack)["tables"] = MotionTables.load(scene_tables)
    return pack
