"""The network calls on the bundled pack's real networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuralcodec.inference import Inference
from neuralcodec.pack import load_pack


@pytest.fixture(scope="module")
def networks() -> Inference:
    return Inference(load_pack(), device="cpu", threads=1)


def test_many_people_in_one_call_look_as_they_do_one_by_one(networks: Inference, portrait_clip: list[Any]) -> None:
    mirrored = np.ascontiguousarray(portrait_clip[0][:, ::-1])
    people = [networks.reference(portrait_clip[0]), networks.reference(mirrored), networks.reference(portrait_clip[5])]
    motions = [networks.motion(portrait_clip[i], people[0].estimate.box).motion for i in (3, 6, 9)]
    for order in ((0, 1, 2), (0, 1, 2), (2, 0, 1), (1, 1, 1)):
        chosen, moved = [people[i] for i in order], [motions[i] for i in order]
        together = networks.render_many(chosen, moved)
        for found, person, motion in zip(together, chosen, moved, strict=True):
            alone = networks.render(person, motion)
            assert int(np.abs(found.astype(int) - alone).max()) <= 1 and alone.std() > 5
    with pytest.raises(ValueError, match="1 references and 2 motions"):
        networks.render_many(people[:1], motions[:2])


def test_a_warm_up_opens_every_network(portrait_clip: list[Any]) -> None:
    networks = Inference(load_pack(), device="cpu", threads=1)
    networks.warm_up(batch=2)
    assert {"_motion", "_reference", "_render", "detector"} <= vars(networks).keys()
    assert networks.provider == "CPUExecutionProvider"
