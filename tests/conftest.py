"""Real material that several test files share: the astronaut clip, coded once with the bundled pack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec import decoder, encoder, inference
from neuralcodec.inference import Inference
from neuralcodec.motion import Array
from neuralcodec.pack import Pack, load_pack
from neuralcodec.quantizer import MotionTables
from neuralcodec.runtime.session import Session, open_session

ROOT = Path(__file__).parent.parent
FOOTAGE = Path(os.environ.get("NEURALCODEC_DATA", ROOT.parent / "shared" / "data"))
VECTORS = Path(__file__).parent / "vectors"
FRAMES = 20
NODES = 3  # a side, of the scene that is laid around the frozen tracks


@pytest.fixture(scope="session", autouse=True)
def shared_networks() -> Iterator[None]:
    """Equal graphs, asked for in equal words by one end after the other, are opened once in a process: ONNX Runtime
    takes longer to prepare a pack than most tests to use it. Nothing of a run stays in a session, several may use it at
    once, and what belongs to one end (its estimates, its held pictures, its renderer's threads) is not shared. So it is
    with the default pack, which the calls of one server share as well. Tests of sessions and packs call `open_session`
    and `load_pack` themselves, and programs that tests start have their own."""
    kept, default = lru_cache(maxsize=16)(open_session), cache(load_pack)

    def opened(graph: bytes, *, device: str = "cpu", **how: Any) -> Session:
        return (kept if device in ("auto", "cpu") else open_session)(graph, device=device, **how)

    def loaded(source: str | Path | None = None) -> Pack:
        return default() if source is None else load_pack(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "open_session", opened)
        patch.setattr(decoder, "load_pack", loaded)
        patch.setattr(encoder, "load_pack", loaded)
        yield


@cache
def drawn() -> tuple[list[Array], Iterator[Array]]:
    """The demo's portrait as far as it has been drawn in this process, and what draws the rest."""
    from neuralcodec.demo import moving_portrait

    return [], moving_portrait()


def portrait(frames: int) -> list[Array]:
    """The first uint8 RGB (256, 256, 3) frames, 150 at most, of a public-domain portrait that turns and speaks. Nobody
    writes into them: each is drawn once, which takes as long as coding it."""
    there, more = drawn()
    there.extend(islice(more, max(0, frames - len(there))))
    assert len(there) >= frames
    return there[:frames]


def there_and_back(clip: list[Array], frames: int) -> list[Array]:
    """So many frames, of a clip that is played forwards and backwards without a jump."""
    return ([*clip, *clip[-2:0:-1]] * (1 + frames // (2 * len(clip) - 2)))[:frames]


def somebody_else(image: Array) -> Array:
    """Mirrored, with red and blue changed: another person before another wall."""
    return np.ascontiguousarray(image[:, ::-1, ::-1])


def exposed(image: Array, gain: float) -> Array:
    """With so many times the light."""
    return np.clip(image * gain + 0.5, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def networks() -> Inference:
    return Inference(nc.load_pack(), device="cpu", threads=1)


@pytest.fixture(scope="session")
def portrait_clip() -> list[Array]:
    return portrait(FRAMES)


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
