"""The demonstration: a clip that moves smoothly, needs no network, and is coded and measured for real."""

from __future__ import annotations

import errno
import socket
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

from neuralcodec import demo
from neuralcodec.errors import BackendUnavailableError, MediaError
from neuralcodec.media import VideoReader
from neuralcodec.motion import Array

pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def clip() -> list[Array]:
    return list(demo.moving_portrait(1.6))


def test_clip_is_the_portrait_at_the_promised_size(clip: list[Array]) -> None:
    assert len(clip) == 40
    assert all(frame.shape == (256, 256, 3) and frame.dtype == np.uint8 for frame in clip)
    assert 100 < np.mean(clip[0]) < 160 and np.std(clip[0]) > 50  # a picture, not a flat field


def test_clip_moves_smoothly_and_never_stands(clip: list[Array]) -> None:
    steps = [float(np.abs(a.astype(int) - b).mean()) for a, b in zip(clip, clip[1:], strict=False)]
    assert 0.2 < min(steps) and max(steps) < 6  # of 255: no cut, no frozen frame
    assert np.abs(clip[0].astype(int) - clip[-1]).mean() > 4  # and it gets somewhere


def test_eyes_shut_and_open_again() -> None:
    """At 1.3 s the lids are down: the dark of both irises is gone, as it is not shortly before."""

    def darkest(t: float) -> float:
        x, y, _ = demo._source_points(t)
        near = np.hypot(x - demo.EYES[0][0], y - demo.EYES[0][1]) < 3  # pixels that show the middle of the eye
        return float(near.sum())

    assert darkest(1.0) > 10 and darkest(1.3) < 0.3 * darkest(1.0) and darkest(1.7) > 10


def test_clip_is_the_same_every_time_and_starts_anywhere(clip: list[Array]) -> None:
    again = list(demo.moving_portrait(0.12))
    assert len(again) == 3 and all(np.array_equal(a, b) for a, b in zip(again, clip, strict=False))


def test_clip_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert next(demo.moving_portrait(0.04)).shape == (256, 256, 3)


def test_missing_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.data", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install \"neuralcodec\[demo\]\""):
        next(demo.moving_portrait(0.04))


def test_x264_is_counted_without_its_signature_and_takes_no_more_than_it_may(clip: list[Array]) -> None:
    coded = demo._X264(clip[:10], 30.0)
    assert b"x264 - core" in b"".join(coded.packets)  # the signature is in the packets, not in the count
    assert 15 < coded.kbps <= 30 and coded.kbps < sum(map(len, coded.packets)) * 8 / 1000 / 0.4 - 8
    shown = list(coded.frames)
    assert len(shown) == 10 and all(frame.shape == (256, 256, 3) for frame in shown)
    fine = demo._X264(clip[:10], 300.0).frames
    assert abs(np.mean([after.mean() - before.mean() for before, after in zip(clip, fine, strict=False)])) < 0.4


def test_x264_shrinks_its_pictures_where_that_shows_more(clip: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    free = demo._X264(clip, 8.0)
    monkeypatch.setattr(demo._X264, "WAYS", ((256, 1),))
    whole = demo._X264(clip, 8.0)
    assert free.kbps <= 8.0 < whole.kbps  # at full size its coarsest quantizer takes more
    assert np.mean([demo.psnr(a, b) for a, b in zip(clip, free.frames, strict=True)]) > 20


def test_results_are_not_overwritten_unasked(tmp_path: Path) -> None:
    (tmp_path / "demo.png").write_text("precious")
    with pytest.raises(MediaError, match="exists already"):
        demo.run_demo(tmp_path, seconds=0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]


def test_a_folder_that_takes_no_files_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(demo.tempfile, "mkdtemp", refused)
    with pytest.raises(MediaError, match="Cannot write into the folder .*: Permission denied"):
        demo.run_demo(tmp_path, seconds=0.04)


def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures: list[weakref.ref[Array]] = []
    most = 0

    def noted(image: Array) -> Array:
        nonlocal most
        pictures.append(weakref.ref(image))
        most = max(most, sum(picture() is not None for picture in pictures))
        return image

    read_frames, resize = demo.read_frames, demo.resize
    monkeypatch.setattr(demo, "read_frames", lambda path: ((pts, noted(image)) for pts, image in read_frames(path)))
    monkeypatch.setattr(demo, "resize", lambda *arguments: noted(resize(*arguments)))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere.mp4").write_text("old")
    (tmp_path / "out" / "demo.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    result = demo.run_demo(tmp_path / "out", seconds=0.4, device="cpu", overwrite=True)
    assert result.video.is_symlink()  # to the new film, which is looked at below
    assert len(pictures) > 50 and most < 10  # the clip is never in memory as a whole
    assert result.frames == 10 and result.provider
    ours, theirs = result.rows
    assert ours.kbps > 0 and theirs.kbps > 0
    assert 12 < ours.psnr < 50 and 0.3 < ours.ms_ssim <= 1 and 15 < theirs.psnr < 50
    assert {"send: motion", "receive: render"} <= result.stage_ms.keys()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.mp4", "demo.ncv", "demo.png"]
    with VideoReader(result.video) as film:
        assert (film.width, film.height, film.frames) == (768, 280, 10)
    with av.open(str(result.picture)) as picture:
        assert (picture.streams.video[0].width, picture.streams.video[0].height) == (6 * 256, 3 * 280)
