"""The free-view evaluation's own arithmetic, on cases with known answers; its networks where they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("rich")

from benchmarks import driving, faces, free_view, pose
from neuralcodec.motion import rotation_matrix

HEAD = np.zeros((68, 3))
HEAD[list(pose.HEAD)] = list(pose.HEAD.values())


@pytest.mark.parametrize("turn", [(0, 0, 0), (30, 0, 0), (-25, 10, 15), (5, -25, -30)])
def test_the_pose_of_a_projected_head_is_found(turn: tuple[float, float, float]) -> None:
    wanted = rotation_matrix(*turn)
    seen = 57 * (HEAD @ wanted)[:, :2] + [100, 90]
    assert pose.angle(pose.rotation(seen).T @ wanted) < 0.1


def test_angles_between_rotations() -> None:
    assert np.isclose(pose.angle(rotation_matrix(0, 33, 0)), 33, atol=1e-3) and pose.angle(np.eye(3)) == 0


def test_expression_is_seen_apart_from_pose() -> None:
    """A mouth that opens in a head that turns correlates with one that opens in a head that does not."""
    face = np.zeros((68, 3))
    face[list(driving.FACE)] = np.random.default_rng(2).normal(size=(42, 3)) * 0.5
    face[list(driving.FACE), 2] = driving.DEPTH
    face[list(pose.HEAD)] = list(pose.HEAD.values())
    opening = np.abs(np.sin(np.arange(30) / 3))

    def film(turns: list[tuple[float, float, float]], sign: float = 1.0) -> np.ndarray:
        frames = []
        for amount, turn in zip(opening, turns, strict=True):
            points = face.copy()
            points[[57, 66, 67, 65], 1] += 0.2 * sign * amount
            frames.append(60 * (points @ rotation_matrix(*turn))[:, :2] + 100)
        return driving._movement(np.array(frames))

    straight = film([(0, 0, 0)] * 30)
    turning = film([(12 * np.sin(i / 5), 6 * np.cos(i / 4), 5 * np.sin(i / 7)) for i in range(30)])
    assert driving.correlation(straight, straight) == pytest.approx(1)
    assert driving.correlation(straight, turning) > 0.95
    assert driving.correlation(straight, film([(0, 0, 0)] * 30, -1)) == pytest.approx(-1, abs=0.01)


def test_requests_are_the_stated_ones() -> None:
    names = [name for name, _ in free_view.requests(np.random.default_rng(0))]
    assert names.count("random") == free_view.RANDOM and "yaw +20" in names and "pitch -10" in names
    for name, view in free_view.requests(np.random.default_rng(0)):
        assert name != "random" or (np.abs([view.yaw, view.pitch, view.roll]) <= free_view.BOX).all()


def test_shares_count_what_the_paper_counts() -> None:
    zero, near, far = np.zeros(128), np.full(128, 0.3 / np.sqrt(128)), np.full(128, 0.9 / np.sqrt(128))
    rows = [{"error": error, "pair": (zero, other)} for error, other in ((5, near), (20, near), (5, far), (20, far))]
    found = free_view.summary(rows, None)
    assert (found["identity_kept"], found["angle_reached"], found["both"]) == (0.5, 0.5, 0.25)
    assert found["angle_error"] == 12.5 and np.isclose(found["identity_distance"], 0.6)


def test_the_example_writes_its_grid(tmp_path: Path) -> None:
    from PIL import Image

    out = tmp_path / "grid.png"
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "free_view.py", out], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (7 * 256, 5 * 256) and "35 views of one picture" in done.stdout
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(bool(faces.unavailable()), reason=faces.unavailable())
def test_turning_the_portrait_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.free_view", "--frames", "2", "--parts", "redirect", "--threads", "1"]
    done = subprocess.run([*command, "--json", str(tmp_path / "a.json")], capture_output=True, text=True, cwd=ROOT)
    assert "pose error" in done.stdout and (tmp_path / "a.json").is_file(), done.stderr
