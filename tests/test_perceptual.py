"""ST-LPIPS, LPIPS and DISTS against what their definitions demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clips, perceptual, pretrained

PRINTED = 0.387156  # by the authors' own program, for a grey ramp and its negative

needs_weights = pytest.mark.skipif(bool(perceptual.unavailable()), reason=perceptual.unavailable() or "installed")


@needs_weights
def test_equal_is_nothing_more_noise_is_more_and_a_shift_of_one_is_little() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:96, 0:96]
    wave = 127 + 60 * np.sin(x / 5) * np.cos(y / 7)
    picture = np.stack([wave, wave * 0.8, 255 - wave], axis=2).astype(np.uint8)
    little, much = (np.clip(picture + rng.normal(0, s, picture.shape), 0, 255).astype(np.uint8) for s in (8, 40))
    assert perceptual.distance(picture, picture) == 0
    assert perceptual.distance(picture, much) > 2 * perceptual.distance(picture, little) > 0
    assert perceptual.distance(picture, np.roll(picture, 1, axis=1)) < perceptual.distance(picture, little)
    ramp = np.tile(np.arange(96, dtype=np.uint8)[None, :, None], (96, 1, 3))
    assert perceptual.distance(ramp, 255 - ramp) == pytest.approx(PRINTED, abs=1e-4)
    clip = clips.from_frames("pair", [picture] * 9)
    assert perceptual.figures(clip, clip.frames) == {"st_lpips": 0.0}


def test_chosen_frames_are_the_middles_of_equal_parts() -> None:
    assert perceptual.spaced(9) == [1, 4, 7]
    assert all(0 <= i < 2 for i in perceptual.spaced(2))


def test_missing_weights_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert "pip install" in perceptual.unavailable()


@pytest.mark.parametrize(("name", "trunk"), [("lpips", "alexnet-owt-"), ("dists", "vgg16-")])
def test_what_stands_on_a_trunk_says_which_is_missing_and_fetches_nothing(
    name: str, trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = pretrained.importlib.util  # type: ignore[attr-defined]
    monkeypatch.setattr(find, "find_spec", lambda module: None)
    assert "pip install" in pretrained.unavailable(name)
    monkeypatch.setattr(find, "find_spec", lambda module: module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert trunk in pretrained.unavailable(name)
    there = tmp_path / "hub" / "checkpoints" / pretrained.JUDGES[name].trunk
    there.parent.mkdir(parents=True)
    there.touch()
    assert pretrained.unavailable(name) == ""


@pytest.mark.parametrize(("name", "trunk"), [("lpips", "alexnet"), ("dists", "vgg16")])
def test_the_authors_packages_judge(name: str, trunk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a trunk of random weights, which the packages find where torch's hub would have put the taught one."""
    torch, models = pytest.importorskip("torch"), pytest.importorskip("torchvision.models")
    judge = pretrained.JUDGES[name]
    pytest.importorskip(judge.module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(getattr(models, trunk)(weights=None).state_dict(), hub / judge.trunk)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)
    film: list[Any] = [picture] * 3
    clip = clips.from_frames("three", film)

    def noisy(strength: float) -> list[Any]:
        return [np.clip(picture + rng.normal(0, strength, picture.shape), 0, 255).astype(np.uint8)] * 3

    pretrained._loaded.cache_clear()
    assert pretrained.figures(name, clip, film)[name] == pytest.approx(0, abs=1e-6)
    assert pretrained.figures(name, clip, noisy(60))[name] > pretrained.figures(name, clip, noisy(10))[name] > 1e-6
    pretrained._loaded.cache_clear()
