"""Raw video to training footage: still square head-and-shoulders clips without cuts, with labels for every frame.

    python -m neuralcodec.training.prepare VIDEOS... --out DATA

writes DATA/{split}/256/NAME.mp4, DATA/{split}/512/NAME.mp4 where the source is that fine, DATA/{split}/labels/NAME.npz,
DATA/landmarks.json and DATA/manifest.csv. Labels come from MediaPipe Face Mesh, which needs an old Python and NumPy:
without it, run with --no-labels, then again with --labels-only where it is installed. Knows no torch, and no network
but the face detector of the default pack.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import Progress

from neuralcodec.errors import BackendUnavailableError, MediaError, NeuralCodecError, NoFaceError
from neuralcodec.face import Face, FaceDetector, Square, crop, head_square, resize
from neuralcodec.media import VideoReader, VideoWriter, output_path
from neuralcodec.motion import Array
from neuralcodec.runtime.session import open_session

LANDMARKS = Path(__file__).with_name("landmarks.json")
PACK = Path(__file__).parents[1] / "packs" / "portrait"
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts"}
MAX_FPS = 31
CUT_LEVEL = 18.0  # mean difference of two tiny frames, of 255, that can be a cut
CUT_RATIO = 4.0  # and how much more than lately it must be
LOOKS_PER_SECOND = 5  # how often the detector looks for the face
FINE_SIDE = 400  # source pixels from which a crop is worth 512
HINT = 'python3.12 -m venv label && label/bin/pip install "mediapipe==0.10.21" "numpy<2" neuralcodec[cpu]'


@dataclass(frozen=True)
class Segment:
    """Frames [start, stop) of a video that one still square shows."""

    start: int
    stop: int
    square: Square
    face_side: int


@dataclass
class Row:
    """One line of manifest.csv."""

    split: str
    file: str
    source: str
    start: int
    frames: int
    fps: float
    square: str
    face_px: int
    has_512: str


# -- reading -------------------------------------------------------------------------------------------------


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Fraction, Iterator[Array]]]:
    """Frame rate and frames of a video; above 31 frames a second every second, third, ... frame."""
    with VideoReader(path) as reader:
        rate = 1 / (reader.time_base * reader.frame_duration)
        keep = max(1, math.ceil(rate / MAX_FPS))
        yield rate / keep, (image for number, (_, image) in enumerate(reader) if number % keep == 0)


class CutFinder:
    """Tells where one shot ends and another begins, from how much a tiny copy of the frame changes."""

    def __init__(self) -> None:
        self._last: Array | None = None
        self._usual = 4.0

    def is_cut(self, image: Array) -> bool:
        """Whether ``image`` starts a new shot; call once for every frame, in order."""
        tiny = resize(image, 48, 32).astype(np.float32)
        last, self._last = self._last, tiny
        if last is None:
            return False
        change = float(abs(tiny - last).mean())
        if change > max(CUT_LEVEL, CUT_RATIO * self._usual):
            self._usual = 4.0
            return True
        self._usual = 0.9 * self._usual + 0.1 * change
        return False


# -- segments ------------------------------------------------------------------------------------------------


def survey(
    frames: Iterator[Array], rate: float, detector: FaceDetector
) -> tuple[list[int], list[tuple[int, Face | None]], tuple[int, int]]:
    """First look at a video: where shots start (and the end), the face now and then, and (width, height)."""
    cuts, finder = [0], CutFinder()
    seen: list[tuple[int, Face | None]] = []
    step = max(1, round(rate / LOOKS_PER_SECOND))
    count, size, last = 0, (0, 0), None
    for image in frames:
        size = (image.shape[1], image.shape[0])
        cut = finder.is_cut(image)
        if cut:
            cuts.append(count)
            last = None
        if cut or (count - cuts[-1]) % step == 0:
            found = detector.detect(image)
            if last is not None:  # stay with the same person
                before = last
                found.sort(key=lambda face: abs(face.center_x - before.center_x) + abs(face.center_y - before.center_y))
            last = found[0] if found else last
            seen.append((count, found[0] if found else None))
        count += 1
    return [*cuts, count], seen, size


def split_segments(
    cuts: list[int], seen: list[tuple[int, Face | None]], size: tuple[int, int], least: int, most: int
) -> list[Segment]:
    """Runs of ``least`` to ``most`` frames within a shot where one still square keeps the same face in its place."""
    out: list[Segment] = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        looks = [look for look in seen if start <= look[0] < stop]
        run: list[tuple[int, Face]] = []
        for k, (number, face) in enumerate(looks):
            after = looks[k + 1][0] if k + 1 < len(looks) else stop
            if face is None:
                blink = run and k + 1 < len(looks) and looks[k - 1][1] and looks[k + 1][1]
                if run and not blink:  # one miss between two finds is the detector's; two are the person's
                    _close(out, run, run[-1][0] + 1, size, least)
                    run = []
            elif not run or (_together([*run, (number, face)]) and after - run[0][0] <= most):
                run.append((number, face))
            else:
                _close(out, run, number, size, least)
                run = [(number, face)]
        _close(out, run, stop, size, least)
    return out


def _together(run: list[tuple[int, Face]]) -> bool:
    """Whether one square can hold these faces: they move less than 0.9 of their half side and keep their size."""
    faces = np.array([[face.center_x, face.center_y, face.half_side] for _, face in run])
    half = float(np.median(faces[:, 2]))
    spread = np.ptp(faces[:, :2], axis=0).max()
    jump = abs(np.diff(faces[-2:, :2], axis=0)).max() if len(faces) > 1 else 0.0
    return bool(spread < 0.9 * half and faces[:, 2].max() < 1.5 * faces[:, 2].min() and jump < 0.6 * half)


def _close(out: list[Segment], run: list[tuple[int, Face]], stop: int, size: tuple[int, int], least: int) -> None:
    if not run or stop - run[0][0] < least:
        return
    faces = np.array([[face.center_x, face.center_y, face.half_side] for _, face in run])
    middle = (faces.max(0) + faces.min(0)) / 2
    face = Face(float(middle[0]), float(middle[1]), float(np.median(faces[:, 2])))
    square = head_square(face, size)
    if square.x >= 0 and square.y >= 0 and square.x + square.side <= size[0] and square.y + square.side <= size[1]:
        out.append(Segment(run[0][0], stop, square, round(2 * face.half_side)))


# -- writing -------------------------------------------------------------------------------------------------


def write_segment(path: Path, segment: Segment, sizes: dict[Path, int], overwrite: bool) -> None:
    """Cut one segment out of the video at ``path`` into a clip of each size (clip path -> side), all or none."""
    with ExitStack() as cleanup:
        rate, frames = cleanup.enter_context(open_video(path))
        writers = {}
        for target, size in sizes.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            writer = VideoWriter(target, size, size, 1 / rate, overwrite=overwrite)
            writers[size] = cleanup.enter_context(writer)
        for number, image in enumerate(islice(frames, segment.start, segment.stop)):
            for size, writer in writers.items():
                writer.write(crop(image, segment.square, size), number)


def save(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all, over whatever was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with output_path(path, overwrite=True) as partial:
        partial.write_bytes(data)


# -- labels --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mesh:
    """landmarks.json: which face-mesh points are kept, which move only with the head, and the mean shape of those."""

    kept: list[int]
    rigid: list[int]
    reference: Array

    @classmethod
    def load(cls) -> Mesh:
        data = json.loads(LANDMARKS.read_text())
        return cls(data["mesh_index"], data["rigid_index"], np.array(data["rigid_reference"], np.float64))


def fit_pose(points: Array, reference: Array) -> tuple[Array, float, Array]:
    """Rotation, scale, translation with points = scale * reference @ rotation + translation, by least squares."""
    middle, home = points.mean(0), reference.mean(0)
    left, stretch, right = np.linalg.svd((reference - home).T @ (points - middle))
    upright = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])  # a rotation, never a mirror image
    rotation = (left * upright) @ right
    scale = float((stretch * upright).sum() / ((reference - home) ** 2).sum())
    return rotation, scale, middle - scale * home @ rotation


def make_labels(meshes: list[Array | None], mesh: Mesh) -> dict[str, Array]:
    """The arrays of a label file from one face mesh per frame: (478, 3) in 0..1 picture units, None where no face was.

    landmarks float16 (N, 152, 3), found bool (N,), rotation (N, 3, 3), scale (N,), translation (N, 3) float32; zeros
    where nothing was found. All three axes are mapped to [-1, 1] alike, so z of the head is near -1.
    """
    count = len(meshes)
    labels: dict[str, Array] = {
        "landmarks": np.zeros((count, len(mesh.kept), 3), np.float16),
        "found": np.zeros(count, bool),
        "rotation": np.zeros((count, 3, 3), np.float32),
        "scale": np.zeros(count, np.float32),
        "translation": np.zeros((count, 3), np.float32),
    }
    for number, raw in enumerate(meshes):
        if raw is None:
            continue
        points = np.asarray(raw, np.float64) * 2 - 1
        rotation, scale, translation = fit_pose(points[mesh.rigid], mesh.reference)
        labels["found"][number] = True
        labels["landmarks"][number] = points[mesh.kept]
        labels["rotation"][number] = rotation
        labels["scale"][number] = scale
        labels["translation"][number] = translation
    return labels


class FaceMesh:
    """MediaPipe Face Mesh, 478 points of the one face of a clip, following it from frame to frame."""

    def __init__(self) -> None:
        try:
            mediapipe = importlib.import_module("mediapipe")
        except ImportError as problem:
            raise BackendUnavailableError(
                f"labels need mediapipe 0.10.21, which needs Python 3.12 or older and NumPy 1 ({problem}); write clips "
                f"with --no-labels, then label them with --labels-only in an environment of its own: {HINT}"
            ) from None
        self._mesh = mediapipe.solutions.face_mesh.FaceMesh(max_num_faces=1, refine_landmarks=True)

    def __call__(self, image: Array) -> Array | None:
        result = self._mesh.process(np.ascontiguousarray(image))
        if not result.multi_face_landmarks:
            return None
        return np.array([[p.x, p.y, p.z] for p in result.multi_face_landmarks[0].landmark])

    def close(self) -> None:
        self._mesh.close()


def label_clip(clip: Path, target: Path) -> float:
    """Label every frame of a written clip; returns the share of frames with a face."""
    with closing(FaceMesh()) as mesh, open_video(clip) as (_, frames):
        labels = make_labels([mesh(image) for image in frames], Mesh.load())
    packed = io.BytesIO()
    np.savez_compressed(packed, **cast(Any, labels))
    save(target, packed.getvalue())
    return float(labels["found"].mean())


# -- the command ---------------------------------------------------------------------------------------------


def find_videos(paths: list[Path]) -> dict[str, Path]:
    """Clip name stem -> video, folders searched for videos."""
    out: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise MediaError(f"{path} does not exist; give video files or folders of them.")
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES) if path.is_dir() else [path]
        for video in inside:
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", video.stem)
            if stem in out:
                raise MediaError(f"{video} and {out[stem]} would both be named {stem}; rename one of them.")
            out[stem] = video
    if not out:
        raise MediaError(
            f"no video in {', '.join(map(str, paths))}; expected {', '.join(sorted(VIDEO_SUFFIXES))} files."
        )
    return out


def prepare(video: Path, stem: str, options: argparse.Namespace, detector: FaceDetector) -> list[Row]:
    """Cut one video into clips; returns their manifest rows."""
    with open_video(video) as (rate, frames):
        cuts, seen, size = survey(frames, float(rate), detector)
    least = max(2, round(options.min_seconds * rate))
    if least > options.max_frames:
        raise MediaError(
            f"--min-seconds {options.min_seconds:g} are {least} frames of {video}, more than --max-frames "
            f"{options.max_frames}; give more frames or fewer seconds."
        )
    segments = split_segments(cuts, seen, size, least, options.max_frames)
    if not segments:
        raise NoFaceError(f"{video} shows no face for {options.min_seconds:g} s in one place; nothing to learn here.")
    # not before there is something to take their place
    for clip in earlier_clips(stem, options) if options.force else []:
        for stale in (clip, options.out / options.split / "512" / clip.name,
                      options.out / options.split / "labels" / f"{clip.stem}.npz"):  # fmt: skip
            stale.unlink(missing_ok=True)
    rows = []
    for number, segment in enumerate(segments):
        name = f"{stem}_{number}.mp4"
        folder = options.out / options.split
        sizes = {folder / "256" / name: 256}
        if segment.square.side >= FINE_SIDE:
            sizes[folder / "512" / name] = 512
        write_segment(video, segment, sizes, options.force)
        square = f"{segment.square.x} {segment.square.y} {segment.square.side}"
        rows.append(Row(options.split, name, str(video), segment.start, segment.stop - segment.start,
                        round(float(rate), 3), square, segment.face_side, str(len(sizes) > 1).lower()))  # fmt: skip
    return rows


def earlier_clips(stem: str, options: argparse.Namespace) -> list[Path]:
    """The clips that were cut from a video before."""
    found = sorted((options.out / options.split / "256").glob(f"{stem}_*.mp4"))
    return [clip for clip in found if re.fullmatch(r"\d+", clip.stem[len(stem) + 1 :])]


def write_manifest(path: Path, rows: list[Row]) -> None:
    """Add rows to manifest.csv; a row of the same file is replaced."""
    kept: list[dict[str, str]] = []
    fresh = {(row.split, row.file) for row in rows}
    if path.exists():
        with path.open(newline="") as old:
            kept = [line for line in csv.DictReader(old) if (line["split"], line["file"]) not in fresh]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *(asdict(row) for row in rows)])
    save(path, text.getvalue().encode())


def cut_all(options: argparse.Namespace, videos: dict[str, Path]) -> list[str]:
    """Cut every video; returns one sentence for each that gave nothing."""
    for stem in videos:
        if not options.force and (old := earlier_clips(stem, options)):
            raise MediaError(f"{old[0]} exists; use -f to replace it or another --out.")
    detector = FaceDetector(open_session(options.detector, threads=1))
    problems = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("cutting", total=len(videos))
        for stem, video in videos.items():
            progress.update(bar, description=video.name)
            try:
                write_manifest(options.out / "manifest.csv", prepare(video, stem, options, detector))
            except (MediaError, NoFaceError) as problem:
                problems.append(str(problem))
            progress.advance(bar)
    return problems


def label_all(options: argparse.Namespace) -> None:
    """Label every clip of the split and every photograph of stills*/ that has no labels yet (all of them with -f)."""
    folder = options.out / options.split
    found = {c: folder / "labels" / f"{c.stem}.npz" for c in sorted((folder / "256").glob("*.mp4"))}
    found |= {p: p.parent / "labels" / f"{p.stem}.npz" for p in sorted(options.out.glob("stills*/*.jpg"))}
    clips = {clip: target for clip, target in found.items() if options.force or not target.exists()}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("labelling", total=len(clips))
        for clip, target in clips.items():
            progress.update(bar, description=clip.name)
            share = label_clip(clip, target)
            if share < 0.9:
                progress.console.print(f"{clip.name}: a face in only {share:.0%} of the frames; look at it first.")
            progress.advance(bar)


def parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n")[0]
    out = argparse.ArgumentParser(prog="python -m neuralcodec.training.prepare", description=about)
    out.add_argument("videos", type=Path, nargs="*", help="video files, or folders of them")
    out.add_argument("--out", type=Path, required=True, help="the data folder")
    out.add_argument("--split", choices=("train", "val"), default="train", help="never put one person into both")
    out.add_argument("--min-seconds", type=float, default=1.0, help="shorter clips are dropped (default 1)")
    out.add_argument("--max-frames", type=int, default=600, help="longer ones are split (default 600)")
    out.add_argument("--detector", type=Path, default=PACK / "detector.onnx", help="another face detector (.onnx)")
    out.add_argument("--no-labels", action="store_true", help="write clips only")
    out.add_argument(
        "--labels-only",
        action="store_true",
        help="label the clips, and the photographs of stills*/, that are in --out already",
    )
    out.add_argument("-f", "--force", action="store_true", help="replace clips and labels that exist")
    return out


def main(arguments: list[str] | None = None) -> int:
    command = parser()
    options = command.parse_args(arguments)
    if bool(options.videos) == options.labels_only or (options.labels_only and options.no_labels):
        command.error("give videos to cut, or --labels-only to label what is there")
    if not 0 < options.min_seconds < math.inf:
        command.error(f"--min-seconds is {options.min_seconds:g}; expected a number of more than 0")
    try:
        if not options.no_labels:
            FaceMesh().close()  # say so now rather than after an hour of cutting
        save(options.out / "landmarks.json", LANDMARKS.read_bytes())
        problems = cut_all(options, find_videos(options.videos)) if options.videos else []
        if not options.no_labels:
            label_all(options)
    except (NeuralCodecError, OSError) as problem:
        print(f"prepare: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare: stopped; finished clips are kept.", file=sys.stderr)
        return 1
    for sentence in problems:
        print(f"prepare: {sentence}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
