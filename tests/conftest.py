"""Real material that several test files share: the astronaut clip, coded once with the bundled pack."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import neuralcodec as nc
from neuralcodec.motion import Array

ROOT = Path(__file__).parent.parent
FOOTAGE = Path(os.environ.get("NEURALCODEC_DATA", ROOT.parent / "shared" / "data"))
FRAMES = 20


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
