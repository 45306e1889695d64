"""Training footage as arrays: decoded once, with labels in the coordinates of `neuralcodec.motion`.

Knows no network and no loss. A data folder holds ``{train,val}/256/NAME.mp4`` and ``{train,val}/labels/NAME.npz`` (what
`neuralcodec.training.prepare` writes), and ``landmarks.json`` naming the face-mesh points of the labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from neuralcodec.errors import DAMAGED_NPZ, MediaError
from neuralcodec.models import ModelConfig
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import MotionTables, Quantizer
from neuralcodec.reference import decode_reference, encode_reference
from neuralcodec.scene import Pyramid, register

NEAR_FRAMES = 12
SCENE_NODES = ModelConfig.preset("portrait").scene  # a side
CANDIDATES = 12  # driving frames among which a hard pair is chosen
SWAY = 0.12  # picture units, standard deviation: how far the scene behind a head moves in pairs made for that
HELD = 0.8  # share of the coded sources that receivers held, where such pictures are at hand

# MediaPipe face-mesh numbers of the 30 portrait keypoints: right eye (outer, inner, upper, lower), left eye, irises,
# brows,
# nose, lips (corners, inner, outer, diagonals), chin and outline.
PORTRAIT_POINTS = [33, 133, 159, 145, 263, 362, 386, 374, 468, 473, 105, 334, 55, 285, 1, 168,
                   61, 291, 13, 14, 0, 17, 40, 270, 91, 321, 152, 234, 454, 10]  # fmt: skip
MIRRORED = [4, 5, 6, 7, 0, 1, 2, 3, 9, 8, 11, 10, 13, 12, 14, 15,
            17, 16, 18, 19, 20, 21, 23, 22, 25, 24, 26, 28, 27, 29]  # fmt: skip

GAPS = ((3, 2), (7, 6), (19, 18), (21, 20))  # lower and upper lids, inner and outer lips: openings of a few pixels


@dataclass(frozen=True)
class Clip:
    """One clip: frames uint8 (N, S, S, 3); keypoints (N, K, 3), rotation (N, 3, 3), scale (N,), translation (N, 2)
    float32; shape (K, 3): this identity's mean canonical keypoints. received: frames by number as the codec's receivers
    hold them (see received.py)."""

    name: str
    frames: Any
    keypoints: Tensor
    rotation: Tensor
    scale: Tensor
    translation: Tensor
    shape: Tensor
    received: Sequence[tuple[int, Any]] = ()

    def __len__(self) -> int:
        return len(self.keypoints)


def load_clips(
    data: Path,
    split: str,
    cache: Path,
    *,
    size: int = 256,
    limit: int | None = None,
    received: Path | None = None,
) -> list[Clip]:
    """Clips of one split with at least 8 labelled frames, at ``size``; frames are decoded into ``cache`` on first use.
    received: folder of what the codec made of them (received.py). A clip that was made anew is decoded anew.

    All frames are held in memory (33,000 of them take 6.5 GB at 256, 1.6 GB at 128): reading pairs at random from
    disk was measured to be slower than training on them.
    """
    pick = _picked(data)
    _check_received(received)
    (cache / split).mkdir(parents=True, exist_ok=True)
    clips = []
    for path in track(sorted((data / split / "labels").glob("*.npz"))[:limit], f"frames of {split}"):
        label = read_labels(path, pick)
        film = data / split / "256" / f"{path.stem}.mp4"
        stored = cached(film, cache / split, size)
        if not made_of(stored, film):
            partial = stored.with_suffix(f".{os.getpid()}.npy")  # several GPUs start on the same clips
            np.save(partial, squares(film, size))
            os.utime(partial, ns=(film.stat().st_atime_ns, film.stat().st_mtime_ns))
            partial.replace(stored)
        frames = np.load(stored)
        if len(frames) != len(label["found"]):
            raise MediaError(
                f"{film} has {len(frames)} frames and {path} labels {len(label['found'])}; "
                "label it again: neuralcodec.training.prepare --labels-only -f."
            )
        good = np.flatnonzero(label["found"])
        if len(good) < 8:
            continue
        held = _received(received / f"{path.stem}.npz", good, size) if received else ()
        clips.append(_labelled(path.stem, frames, label, good, pick, held))
    if not clips:
        raise SystemExit(
            f"{data / split / 'labels'} holds no labelled clip; make some with neuralcodec.training.prepare."
        )
    return clips


def load_stills(data: Path, *, size: int = 256, received: Path | None = None) -> list[Clip]:
    """The labelled photographs of ``data/stills*`` as clips of one frame. received: see `load_clips`."""
    pick = _picked(data)
    _check_received(received)
    stills = []
    for path in sorted(data.glob("stills*/labels/*.npz")):
        label = read_labels(path, pick)
        if label["found"].all():
            frames = squares(path.parent.parent / f"{path.stem}.jpg", size)
            held = _received(received / f"{path.stem}.npz", range(1), size) if received else ()
            stills.append(_labelled(path.stem, frames, label, np.arange(1), pick, held))
    if not stills:
        raise SystemExit(
            f"{data} holds no labelled photographs; put .jpg files of {size} x {size} into {data / 'stills'}, then run "
            "neuralcodec.training.prepare --labels-only."
        )
    return stills


def _picked(data: Path) -> list[int]:
    """Where the portrait keypoints stand among the landmarks of the labels."""
    named = data / "landmarks.json"
    if not named.is_file():
        raise MediaError(f"{named} is not there; give a folder that neuralcodec.training.prepare has written.")
    try:
        mesh = json.loads(named.read_bytes())["mesh_index"]
        return [mesh.index(point) for point in PORTRAIT_POINTS]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MediaError(
            f"{named} does not name the face-mesh points of the labels ({type(error).__name__}: {error}); take the one "
            "that neuralcodec.training.prepare writes."
        ) from error


def read_labels(path: Path, pick: Sequence[int] = ()) -> dict[str, Any]:
    """The arrays of a label file. MediaError where it is none, is damaged, or lacks one of the landmarks ``pick``."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            label = {name: stored[name] for name in ("found", "rotation", "scale", "translation", "landmarks")}
        found, points = label["found"], label["landmarks"]
        n = len(found)
        wanted = {"found": (n,), "rotation": (n, 3, 3), "scale": (n,), "translation": (n, 3)}
        if any(label[name].shape != shape for name, shape in wanted.items()) or found.dtype != bool:
            raise ValueError("arrays of other shapes")
        if points.ndim != 3 or (len(points), points.shape[2]) != (n, 3) or points.shape[1] <= max(pick, default=0):
            raise ValueError(f"landmarks {points.shape}")
        if not all(np.isfinite(label[name][found]).all() for name in ("rotation", "scale", "translation", "landmarks")):
            raise ValueError("NaN or infinity")
    except DAMAGED_NPZ as error:
        raise MediaError(
            f"{path} holds no usable labels ({error}); label it again: neuralcodec.training.prepare --labels-only -f."
        ) from error
    return label


def _check_received(folder: Path | None) -> None:
    """A wrong path would quietly mean that no receiver's picture is trained on."""
    if folder is not None and not any(folder.glob("*.npz")):
        raise MediaError(f"{folder} holds no pictures of receivers (.npz); neuralcodec.training.received makes them.")


def cached(film: Path, cache: Path, size: int = 256) -> Path:
    """Where the decoded frames of a clip are kept: a file with the clip's own time, or it is of another clip."""
    return cache / f"{film.stem}.{size}.npy"


def made_of(stored: Path, film: Path) -> bool:
    """Whether ``stored`` is there and holds the frames of this clip, as it is now."""
    return stored.exists() and stored.stat().st_mtime_ns == film.stat().st_mtime_ns


def _labelled(name: str, frames: Any, label: Any, good: Any, pick: list[int], received: Any) -> Clip:
    """The frames ``good`` with their labels in the coordinates of `neuralcodec.motion`."""
    rotation = label["rotation"][good]
    scale = label["scale"][good]
    centre = label["translation"][good]
    # the labels' z origin is arbitrary (a monocular estimate): depth is kept relative to the head's own centre
    points = label["landmarks"][good][:, pick].astype(np.float32)
    points[..., 2] -= centre[:, None, 2]
    flat = np.concatenate([centre[:, :2], np.zeros_like(centre[:, :1])], 1)
    shape = (((points - flat[:, None]) / scale[:, None, None]) @ rotation.transpose(0, 2, 1)).mean(0)
    as_tensor = torch.from_numpy
    kept = frames[good] if len(good) < len(frames) else frames
    return Clip(name, kept, as_tensor(points), as_tensor(rotation), as_tensor(scale), as_tensor(centre[:, :2].copy()),
                as_tensor(shape), received)  # fmt: skip


def _received(path: Path, good: Any, size: int) -> list[tuple[int, Any]]:
    """Pictures of a file of received.py, by row among the frames ``good`` that are labelled."""
    if not path.exists():
        return []
    try:
        with np.load(path, allow_pickle=False) as stored:
            numbers, pictures = stored["frames"], shrink(stored["pictures"], size)
        if pictures.shape != (len(numbers), size, size, 3):
            raise ValueError(f"{len(numbers)} numbers and pictures {pictures.shape}")
    except DAMAGED_NPZ as error:
        raise MediaError(
            f"{path} holds no usable pictures ({error}); remove it and run neuralcodec.training.received again."
        ) from error
    row = {int(number): i for i, number in enumerate(good)}
    return [(row[n], picture) for n, picture in zip(numbers.tolist(), pictures, strict=True) if n in row]


def shrink(frames: Any, size: int) -> Any:
    """Average uint8 (N, H, H, 3) down to (N, size, size, 3); H must be a multiple of ``size``."""
    n, h = frames.shape[:2]
    if h == size:
        return frames
    cells = frames.reshape(n, size, h // size, size, h // size, 3)
    return np.stack([(cell.mean((1, 3)) + 0.5).astype(np.uint8) for cell in cells])


def decode(path: Path) -> Any:
    """All frames of a small clip as uint8 RGB (N, H, W, 3). MediaError where there are none to be had."""
    try:
        with av.open(str(path)) as film:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise MediaError(
            f"{path} cannot be read as a clip or photograph ({error}); make it anew or remove it."
        ) from error


def squares(path: Path, size: int) -> Any:
    """All frames of a clip or photograph at ``size``. MediaError where they are not square, or of no multiple of it."""
    frames = decode(path)
    height, width = frames.shape[1:3]
    if width != height or height % size:
        raise MediaError(f"{path} is {width} x {height}; expected {size} x {size}, cut around head and shoulders.")
    return shrink(frames, size)


def mean_shape(clips: list[Clip]) -> Tensor:
    """Mean canonical keypoints (K, 3) over identities, made left-right symmetric."""
    shape = torch.stack([clip.shape for clip in clips]).mean(0)
    return (shape + shape[MIRRORED] * torch.tensor([-1.0, 1, 1])) / 2


@dataclass
class Frames:
    """A batch of labelled pictures: image (B, 3, S, S) float 0..1 and its labels, see `Clip`."""

    image: Tensor
    keypoints: Tensor
    rotation: Tensor
    scale: Tensor
    translation: Tensor
    shape: Tensor
    scene: Tensor | None = None  # (B, M, 2): how what is not the head moved from the other picture of a pair to this
    decoded: tuple[tuple[Tensor, Tensor], ...] = ()  # keypoints and rotation after the quantizer, one of each rounding

    @property
    def box(self) -> Tensor:
        """Where the motion network looks (B, 3): centre x, y and half side."""
        return torch.cat([self.translation, self.scale[:, None]], 1)

    def to(self, device: torch.device) -> Frames:
        return self.each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Frames:
        """What a DataLoader asks for: copies to a GPU then overlap with its work."""
        return self.each(lambda value: value.pin_memory())

    def rows(self, rows: slice) -> Frames:
        return self.each(lambda value: value[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Frames:
        """The same of every tensor changed."""
        changed: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Frames(**changed, decoded=tuple((change(points), change(turns)) for points, turns in self.decoded))


def gather(picks: list[tuple[Clip, int]], pictures: Sequence[Any] = ()) -> Frames:
    """Frames by (clip, row). pictures: uint8 (S, S, 3), to take the place of the first ones' own; None keeps that."""
    images = [clip.frames[i] if picture is None else picture for (clip, i), picture in zip_longest(picks, pictures)]
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255

    def label(key: str) -> Tensor:
        return torch.stack([getattr(clip, key)[i] for clip, i in picks])

    shape = torch.stack([clip.shape for clip, _ in picks])
    return Frames(stack, label("keypoints"), label("rotation"), label("scale"), label("translation"), shape)


def similarity(frames: Frames, size: int, centre: Tensor, half: Tensor, angle: Tensor, mirror: Tensor) -> Frames:
    """Resample each picture through a similarity and move its labels with it.

    The new picture's coordinates u relate to the old ones by p = centre + half * (u @ Q(angle)); centre (B, 2), half
    (B,), angle (B,) radians; where mirror (B,) is true the result is flipped left-right, keypoints renamed.
    """
    c, s = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([torch.stack([c, s], 1), torch.stack([-s, c], 1)], 1)  # B,2,2
    flip = torch.where(mirror, -1.0, 1.0)
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (2 / size) - 1
    u = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).expand(len(angle), size, size, 2)
    u = torch.stack([u[..., 0] * flip[:, None, None], u[..., 1]], -1)
    grid = half[:, None, None, None] * (u.reshape(len(angle), -1, 2) @ turn).view_as(u) + centre[:, None, None]
    image = F.grid_sample(frames.image, grid, padding_mode="border", align_corners=False)

    back = torch.zeros(len(angle), 3, 3)
    back[:, :2, :2], back[:, 2, 2] = turn.transpose(1, 2), 1
    across = torch.ones(len(angle), 3)
    across[:, 0] = flip
    points = frames.keypoints.clone()
    points[..., :2] -= centre[:, None]
    points = (points / half[:, None, None]) @ back * across[:, None]
    rotation = across[:, :, None] * (frames.rotation @ back) * across[:, None]
    place = ((frames.translation - centre) / half[:, None])[:, None] @ turn.transpose(1, 2)
    shape = frames.shape * across[:, None]
    renamed = mirror[:, None, None]
    return Frames(image, torch.where(renamed, points[:, MIRRORED], points), rotation, frames.scale / half,
                  place[:, 0] * across[:, :2], torch.where(renamed, shape[:, MIRRORED], shape))  # fmt: skip


def gaps(points: Tensor) -> Tensor:
    """Openings of lids and lips (B, 4) of keypoints (B, 30, 3), in their units."""
    return torch.stack([points[:, low, 1] - points[:, high, 1] for low, high in GAPS], 1)


def random_pairs(
    clips: list[Clip],
    count: int,
    random: torch.Generator,
    *,
    hard: float = 0.35,
    near: float = 0.3,
    coded: float = 0.0,
    still: float = 0.0,
    before: float = 0.0,
    tables: MotionTables | None = None,
    roundings: int = 1,
) -> tuple[Frames, Frames]:
    """``count`` pairs (source, driving) of one clip each under one camera.

    A share ``hard`` takes the most different of a dozen candidate driving frames (in all keypoints, in how far the eyes
    or how far the mouth stand open: a closed eye is one frame in fifty), a share ``near`` one at most half a second
    away (a codec that renews its references lives there); half of the pairs are moved, scaled and turned a little, half
    mirrored. A share ``coded`` of the sources went through the reference codec or, for most where a clip has such
    pictures, is what receivers hold in their place; with ``tables`` the driving motion is known as decoded, too, in
    ``roundings`` ways. A share ``still`` shows photographs (clips of one frame), source and driving moved apart, a
    share ``before`` heads that hardly move before a scene that does (see `before_scenes`).
    """
    sources, drivings, pictures = [], [], []
    photographs, films = [c for c in clips if len(c) == 1], [c for c in clips if len(c) > 1]
    resting, swaying, wanted_coded = (torch.rand(count, generator=random) < share for share in (still, before, coded))
    for wanted, rests, sways in zip(wanted_coded.tolist(), resting.tolist(), swaying.tolist(), strict=True):
        choice = photographs if rests else films
        clip = choice[int(torch.randint(len(choice), (1,), generator=random))]
        i, *others = torch.randint(len(clip), (1 + CANDIDATES,), generator=random).tolist()
        picture = None
        if wanted and clip.received and float(torch.rand(1, generator=random)) < HELD:
            i, picture = clip.received[i % len(clip.received)]
        elif wanted:
            picture = as_received(clip.frames[i], int(torch.randint(25, 80, (1,), generator=random)))
        kind = float(torch.rand(1, generator=random))
        if sways:
            others = [min(max(i + others[0] % 5 - 2, 0), len(clip) - 1)]
        elif kind > 1 - near:
            others = [min(max(i + others[0] % (2 * NEAR_FRAMES + 1) - NEAR_FRAMES, 0), len(clip) - 1)]
        elif kind < hard:
            opening = gaps(clip.keypoints)
            aspects = (clip.keypoints.flatten(1), opening[:, :2], opening[:, 2:3])
            feature = aspects[int(torch.randint(len(aspects), (1,), generator=random))]
            distances = ((feature[others] - feature[i]) ** 2).sum(1)
            others = [others[int(distances.argmax())]]
        sources.append((clip, i))
        drivings.append((clip, others[0]))
        pictures.append(picture)
    pair = gather(sources + drivings, pictures)
    unit = torch.rand(count, 5, generator=random)
    strength = (unit[:, 0] < 0.5).float()
    centre = (torch.rand(count, 2, generator=random) - 0.5) * 0.3 * strength[:, None]
    half = (unit[:, 1] - 0.5) * 0.5 * strength
    angle = (unit[:, 2] - 0.5) * 0.4 * strength
    apart = torch.randn(count, 4, generator=random) * resting[:, None]  # how else photographs come to move
    centre = torch.cat([centre, centre + 0.06 * apart[:, :2]])
    half = torch.exp(torch.cat([half, half + 0.06 * apart[:, 2]]))
    angle = torch.cat([angle, angle + 0.08 * apart[:, 3]])
    moved = similarity(pair, pair.image.shape[-1], centre, half, angle, (unit[:, 3] < 0.5).repeat(2))
    if known := torch.nonzero(swaying)[:, 0].tolist():
        backdrops = [clips[i] for i in torch.randint(len(clips), (len(known),), generator=random).tolist()]
        picks = [(clip, int(torch.randint(len(clip), (1,), generator=random))) for clip in backdrops]
        sway = before_scenes(moved, [*known, *(i + count for i in known)], gather(picks), random)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.75, 1.25, generator=random).repeat(2, 1, 1, 1)
    moved.image = (moved.image * gain).clamp(0, 1)
    source, driving = moved.rows(slice(0, count)), moved.rows(slice(count, None))
    driving = replace(driving, scene=scenes(source, driving))
    if known:
        driving.scene[known] = sway  # type: ignore[index]
    return source, driving if tables is None else as_decoded(driving, tables, random, roundings)


def before_scenes(frames: Frames, rows: list[int], backdrops: Frames, random: torch.Generator) -> Tensor:
    """Set the heads of these rows (n sources, then their n drivings) before scenes that move between the two, in place:
    half of them before what was behind the source's head, the others before parts of other pictures. Returns how they
    move (n, M, 2). Films seldom show a head that rests before a scene that moves, as a phone held in a hand does, and
    where registration says so in them it is mostly wrong."""
    n, size = len(backdrops.image), frames.image.shape[-1]
    own = torch.rand(n, generator=random) < 0.5
    backdrops.image[own] = frames.image[rows[:n]][own]
    where, stretch = torch.rand(n, 2, generator=random) - 0.5, 0.4 + 0.3 * torch.rand(n, generator=random)
    where[own], stretch[own] = 0.0, 1.0
    reach = torch.where(own, 0.6, 1.0)[:, None]  # what was hidden behind the head must not come out
    reach = reach * (torch.rand(n, 1, generator=random) > 0.2)  # one in five rests, too
    shift, growth = torch.randn(n, 2, generator=random), torch.exp(0.04 * torch.randn(n, generator=random))
    shift = SWAY * reach * shift
    centre = torch.cat([where, where + stretch[:, None] * shift])
    twice = backdrops.each(lambda value: torch.cat([value, value]))
    half, none = torch.cat([stretch, stretch * growth]), torch.zeros(2 * n)
    behind = similarity(twice, size, centre, half, none, none > 0).image
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    scale = frames.scale[rows, None]
    across = (axis - frames.translation[rows, :1]) / (1.1 * scale)  # hair stays with its head
    down = (axis - frames.translation[rows, 1:] + 0.25 * scale) / (1.5 * scale)
    head = torch.sigmoid(8 * (1 - across[:, None, :] ** 2 - down[:, :, None] ** 2))[:, None]
    frames.image[rows] = head * frames.image[rows] + (1 - head) * behind
    nodes = torch.linspace(-1, 1, SCENE_NODES)
    mesh = torch.stack(torch.meshgrid(nodes, nodes, indexing="xy"), -1).reshape(1, -1, 2)
    return (growth[:, None, None] - 1) * mesh + shift[:, None]


def scenes(source: Frames, driving: Frames) -> Tensor:
    """What the sender finds for each pair (B, M, 2); see `neuralcodec.scene`."""
    grey = [[Pyramid(to_picture(image)) for image in frames.image] for frames in (source, driving)]
    found = []
    for i, (before, now) in enumerate(zip(*grey, strict=True)):
        x, y = driving.translation[i].tolist()
        found.append(register(before, now, (x, y, float(driving.scale[i])), None, SCENE_NODES))
    return torch.from_numpy(np.stack(found))


def to_picture(image: Tensor) -> Any:
    """(3, S, S) in 0..1 to uint8 RGB (S, S, 3)."""
    return (image * 255 + 0.5).clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def as_received(picture: Any, quality: int) -> Any:
    """A picture uint8 (S, S, 3) after the reference codec at ``quality`` (its fast preset)."""
    return decode_reference(encode_reference(picture, quality=quality, preset=8), picture.shape[0])


def as_decoded(frames: Frames, tables: MotionTables, random: torch.Generator, roundings: int = 1) -> Frames:
    """The same frames with ``decoded`` set: their motion sent through the codec's quantizer, at random levels and
    component counts. Two ``roundings`` are two levels, which round apart as one frame and the next do."""
    decoded = tuple((frames.keypoints.clone(), frames.rotation.clone()) for _ in range(roundings))
    quantizer = Quantizer(tables)
    for i in range(len(frames.keypoints)):
        shape, place = frames.shape[i].numpy(), np.append(frames.translation[i].numpy(), np.float32(0))
        total = ((frames.keypoints[i].numpy() - place) / float(frames.scale[i])) @ frames.rotation[i].numpy().T
        motion = MotionParams.from_matrix(frames.rotation[i].numpy(), place, float(frames.scale[i]), total - shape)
        level, components = torch.randint(0, 5, (2,), generator=random).tolist()
        for step, (points, turns) in enumerate(decoded):
            quantizer.reset()
            quantizer.forward(motion, level=level + step, components=3 + components, intra=True)
            seen = quantizer.last
            assert seen is not None
            points[i], turns[i] = torch.from_numpy(seen.keypoints(shape)), torch.from_numpy(seen.rotation)
    return replace(frames, decoded=decoded)


def random_patches(
    clips: list[Clip], count: int, size: int, random: torch.Generator, grow: float, down: float
) -> tuple[Frames, Tensor]:
    """Tight face pictures for the motion network, and which of them show a face (B,).

    The square is the pose centre moved ``down`` and the label's scale times ``grow``, both jittered as tracking
    would; one in ten looks elsewhere and is a negative. Colour, blur, noise and small occluders vary.
    """
    picks = []
    for _ in range(count):
        clip = clips[int(torch.randint(len(clips), (1,), generator=random))]
        picks.append((clip, int(torch.randint(len(clip), (1,), generator=random))))
    frames = gather(picks)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    half = frames.scale * grow * torch.exp(0.12 * draw(count))
    centre = frames.translation + 0.1 * frames.scale[:, None] * draw(count, 2)
    centre[:, 1] += down * frames.scale
    away = torch.rand(count, generator=random) < 0.1
    far = draw(count, 2)
    far = far / far.norm(dim=1, keepdim=True) * (1.5 + torch.rand(count, 1, generator=random)) * frames.scale[:, None]
    centre = torch.where(away[:, None], frames.translation + far, centre)
    half = torch.where(away, half * torch.exp(0.5 * draw(count)), half)
    patches = similarity(frames, size, centre, half, 0.25 * draw(count), torch.rand(count, generator=random) < 0.5)
    patches.image = spoil(patches.image, random)
    return patches, (~away).float()


def spoil(image: Tensor, random: torch.Generator) -> Tensor:
    """Colour, grey, blur, noise and occluding blocks, each on a share of the batch."""
    b, _, h, w = image.shape

    def chance(p: float) -> Tensor:
        return (torch.rand(b, 1, 1, 1, generator=random) < p).float()

    gain = torch.exp(0.25 * torch.randn(b, 1, 1, 1, generator=random) + 0.1 * torch.randn(b, 3, 1, 1, generator=random))
    image = (image * gain + 0.08 * torch.randn(b, 1, 1, 1, generator=random)).clamp(0, 1)
    grey = chance(0.1)
    image = grey * image.mean(1, keepdim=True) + (1 - grey) * image
    soft = F.interpolate(F.avg_pool2d(image, 2), size=(h, w), mode="bilinear")
    blur = chance(0.2)
    image = blur * soft + (1 - blur) * image
    image = (image + chance(0.3) * 0.04 * torch.randn(image.shape, generator=random)).clamp(0, 1)
    for i in torch.nonzero(chance(0.15).view(-1)).view(-1).tolist():
        y, x, ey, ex = (torch.rand(4, generator=random) * torch.tensor([h, w, h * 0.35, w * 0.35])).long().tolist()
        image[i, :, y : y + ey, x : x + ex] = torch.rand(3, 1, 1, generator=random)
    return image
